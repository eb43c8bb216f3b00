"""What scribbles cover of full masks, and how much of it is right.

Letters: K classes, H x W image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from src.constants import IGNORE
from src.data.classes import Colour

FADED = 0.45  # of the image's brightness under the strokes
NAMES_SHOWN = 10


@dataclass
class Audit:
    """Counts over images: `pixels`, `labelled` and `wrong` ones, (K,) pixels of each class in the masks (`wanted`) and
    rightly in the scribbles (`covered`); `bare`: images without a stroke; `mixed`: wrong pixels of the images that have
    some."""

    num_classes: int
    pixels: int = 0
    labelled: int = 0
    wrong: int = 0
    images: int = 0
    bare: list[str] = field(default_factory=list)
    mixed: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.wanted, self.covered = np.zeros((2, self.num_classes), np.int64)

    def add(self, name: str, label: np.ndarray, mask: np.ndarray) -> None:
        """Counts one image: scribbles and full mask, both (H, W) uint8; ValueError where their sizes differ."""
        if label.shape != mask.shape:
            raise ValueError(
                f"scribbles of {name} are {label.shape[0]} x {label.shape[1]} (height x width), the mask is "
                f"{mask.shape[0]} x {mask.shape[1]}; they belong to different versions"
            )
        drawn = label != IGNORE
        right = drawn & (label == mask)
        wrong = int((drawn & ~right).sum())
        self.images += 1
        self.pixels += mask.size
        self.labelled += int(drawn.sum())
        self.wrong += wrong
        if wrong:
            self.mixed[name] = wrong
        self.wanted += np.bincount(mask.ravel(), minlength=IGNORE + 1)[: self.num_classes]
        self.covered += np.bincount(label[right], minlength=IGNORE + 1)[: self.num_classes]
        if not drawn.any():
            self.bare.append(name)

    @property
    def fraction(self) -> float:
        """Share of all pixels that is labelled."""
        return self.labelled / max(self.pixels, 1)

    @property
    def purity(self) -> float:
        """Share of the labelled pixels whose class is the mask's."""
        return 1.0 - self.wrong / max(self.labelled, 1)

    def require_usable(self, names: Sequence[str]) -> None:
        """Raises ValueError that lists images without a stroke or with wrong ones, which are none of this project's,
        and classes that are in masks but never scribbled."""
        problems = []
        if self.bare:
            problems.append(f"no stroke in {len(self.bare)} of {self.images} images: {some(self.bare)}; leave them out")
        if self.mixed:
            problems.append(
                f"{self.wrong} pixels have another class than the masks, in {some(list(self.mixed))}: files or masks "
                "were changed; remove these label files and start again"
            )
        never = [names[k] for k in range(self.num_classes) if self.wanted[k] and not self.covered[k]]
        if never:
            problems.append(
                f"never scribbled: {', '.join(never)}; nothing would teach them: draw strokes for them, lower the "
                "smallest area or the drop, or leave the classes out"
            )
        if problems:
            raise ValueError("; ".join(problems))

    def table(self, names: Sequence[str]) -> str:
        """Lines for the console: the totals, then every class's share of pixels that is labelled."""
        total = f"{self.images} images, {self.fraction:.2%} of the pixels labelled, purity {self.purity:.4%}"
        shares = self.covered / np.maximum(self.wanted, 1)
        lines = [f"  {name:20s} {share:8.2%}" for name, share in zip(names, shares, strict=True)]
        return "\n".join([total, "labelled share of each class:", *lines])


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"{', '.join(names[:NAMES_SHOWN])}{more}"


def overlay(image: np.ndarray, label: np.ndarray, palette: Sequence[Colour]) -> np.ndarray:
    """The faded image (H, W, 3) uint8 RGB with strokes in their classes' colours."""
    colours = np.zeros((IGNORE + 1, 3), np.uint8)
    colours[: len(palette)] = palette
    faded = (FADED * image + (1.0 - FADED) * 255).astype(np.uint8)
    return np.where((label != IGNORE)[..., None], colours[label], faded)
