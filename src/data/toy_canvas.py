"""The canvas of the toy scenes: image and label drawn together in a street's perspective, and the shared palettes.

Letters: H x W image height and width. Coordinates are pixels, x to the right, y down. A `depth` runs from 0 (vanishing
point) to 1 (bottom edge of the image).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

Colour = tuple[float, float, float]
JITTER = 0.045  # standard deviation of a chosen colour around its palette entry, each channel

# RGB in 0..1. Each palette is shared by several classes on purpose.
GREYS: tuple[Colour, ...] = ((0.34, 0.34, 0.37), (0.46, 0.45, 0.44), (0.58, 0.58, 0.6), (0.66, 0.63, 0.58),
                             (0.45, 0.5, 0.56))  # fmt: skip
PAINTS: tuple[Colour, ...] = ((0.72, 0.3, 0.24), (0.78, 0.66, 0.42), (0.34, 0.5, 0.74), (0.78, 0.78, 0.76),
                              (0.28, 0.31, 0.42), (0.55, 0.4, 0.3), (0.4, 0.55, 0.32))  # fmt: skip
LEAVES: tuple[Colour, ...] = ((0.28, 0.48, 0.2), (0.42, 0.54, 0.24), (0.28, 0.44, 0.32), (0.4, 0.34, 0.27),
                              (0.62, 0.45, 0.22))  # fmt: skip
SKIES: tuple[Colour, ...] = ((0.5, 0.66, 0.86), (0.7, 0.74, 0.78), (0.82, 0.66, 0.54), (0.44, 0.5, 0.6),
                             (0.62, 0.76, 0.9))  # fmt: skip


@dataclass(frozen=True)
class Street:
    """One scene being drawn: its arrays (written in place), its random numbers and its perspective."""

    image: np.ndarray  # (H, W, 3) float32, 0..1
    label: np.ndarray  # (H, W) uint8
    rng: np.random.Generator
    unit: float  # image pixels per pixel of the default size
    vanish: tuple[float, float]  # x, y of the vanishing point
    kerbs: tuple[float, float]  # x of the road's left and right edge at the bottom of the image
    fronts: tuple[float, float]  # y where the foot of the house fronts meets the left and right border

    def row(self, depth: float) -> float:
        """y of the ground at `depth`."""
        return self.vanish[1] + depth * (self.label.shape[0] - self.vanish[1])

    def kerb(self, side: int, depth: float) -> float:
        """x of the road's edge (side 0 left, 1 right) at `depth`."""
        return self.vanish[0] + depth * (self.kerbs[side] - self.vanish[0])

    def border(self, side: int) -> float:
        """x of the image's left or right border."""
        return (0.0, self.label.shape[1] - 1.0)[side]

    def front_foot(self, side: int, x: float) -> float:
        """y of the foot of the house fronts of one side at `x`."""
        share = (x - self.vanish[0]) / (self.border(side) - self.vanish[0])
        return self.vanish[1] + share * (self.fronts[side] - self.vanish[1])

    def wall(self, side: int, depth: float) -> float:
        """x of the foot of the house fronts at `depth`, or of the border where they have left the image."""
        border = self.border(side)
        share = (self.row(depth) - self.vanish[1]) / (self.fronts[side] - self.vanish[1])
        return self.vanish[0] + min(share, 1.0) * (border - self.vanish[0])

    def scale(self, depth: float) -> float:
        """Size of things at `depth`. Far things shrink less than in reality, so that none becomes too small to see."""
        return self.unit * (0.8 + 0.35 * depth)


def choose(rng: np.random.Generator, *palettes: Sequence[Colour]) -> np.ndarray:
    """A random colour of the palettes, moved a little: (3,) float64."""
    colours = [colour for palette in palettes for colour in palette]
    return np.clip(np.array(colours[rng.integers(len(colours))]) + rng.normal(0.0, JITTER, 3), 0.05, 0.95)


def fill(street: Street, points: Sequence[tuple[float, float]], class_id: int, colour: np.ndarray) -> None:
    """Fill the polygon of (x, y) points in image and label."""
    corners = np.round(np.array(points)).astype(np.int32)
    cv2.fillPoly(street.image, [corners], colour.tolist())
    cv2.fillPoly(street.label, [corners], class_id)


def fill_box(street: Street, box: tuple[float, float, float, float], class_id: int, colour: np.ndarray) -> None:
    """Fill the upright box (left, top, right, bottom), edges included."""
    left, top, right, bottom = box
    fill(street, ((left, top), (right, top), (right, bottom), (left, bottom)), class_id, colour)


def fill_disc(street: Street, centre: tuple[float, float], radius: float, class_id: int, colour: np.ndarray) -> None:
    """Fill a disc."""
    middle, pixels = (round(centre[0]), round(centre[1])), max(1, round(radius))
    cv2.circle(street.image, middle, pixels, colour.tolist(), -1)
    cv2.circle(street.label, middle, pixels, class_id, -1)
