"""Scribbles simulated from full masks (DFR spec, section 8): one stroke for every component of every class.

A stroke is the longest path through the skeleton of what lies well inside a component, and so an open line as in
ScribbleSup. Everything is a function of the mask and a seed. Letters: H x W mask.
"""

import hashlib
import math
from collections import deque
from dataclasses import dataclass
from xml.sax.saxutils import escape

import cv2
import numpy as np

from src.constants import IGNORE
from src.data.label_forms import Point, draw_segment

SMALLEST_LARGEST = 9  # pixels that the largest component of a class needs for a stroke
CORE_DEPTHS = (2.0, 0.2, 8.0)  # of the core: at least 2 pixels, a fifth of the component's depth, no more than 8
VERTEX_STEP = 8  # pixels of a path between vertices
SHORT_PATH = 0.5  # of the square root of the area: below it a component has no skeleton worth the name (discs)
SECOND_STROKE = 0.25  # of the image: area from which the background's second component gets a stroke, too
NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


@dataclass(frozen=True)
class Stroke:
    """An open line of a class; points are (x, y), at least one."""

    label: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Pen:
    """How scribbles are drawn.

    width: pixels; ratio: share of every stroke's length that is kept, its middle (0: a dot); drop: probability with
    which a stroke is left out, but for the last of an image; jitter: standard deviation of the vertices, pixels;
    smallest: area in pixels below which a component gets none, unless it is its class's largest; background: the class
    of which two components at most have strokes, None where no class is background; extra: strokes more in a component,
    each the longest path through what the ones before have left of the skeleton.
    """

    width: int = 3
    ratio: float = 1.0
    drop: float = 0.0
    jitter: float = 0.0
    smallest: int = 100
    background: int | None = 0
    extra: int = 0

    def __post_init__(self) -> None:
        rules = {
            "width": (self.width >= 1, "at least 1 pixel"), "smallest": (self.smallest >= 1, "at least 1 pixel"),
            "ratio": (0.0 <= self.ratio <= 1.0, "0 to 1"), "drop": (0.0 <= self.drop < 1.0, "0 to below 1"),
            "jitter": (0.0 <= self.jitter < math.inf, "a finite number of at least 0"),
            "extra": (self.extra >= 0, "at least 0"),
        }  # fmt: skip
        for name, (right, allowed) in rules.items():
            if not right:
                raise ValueError(f"{name} of the pen is {getattr(self, name)}; give {allowed}")


def scribble(mask: np.ndarray, name: str, seed: int, pen: Pen) -> tuple[list[Stroke], np.ndarray]:
    """Strokes of a mask (H, W) uint8, 255 = ignore, and the label (H, W) uint8 that they make: 255 off the strokes.

    name: of the image, which with the seed decides everything random.
    """
    digest = hashlib.sha256(name.encode()).digest()
    rng = np.random.default_rng((seed, int.from_bytes(digest[:8], "little")))
    strokes = []
    for label in np.unique(mask[mask != IGNORE]).tolist():
        for component in components(mask == label, pen, label == pen.background):
            strokes += [Stroke(label, points) for points in draw_paths(component, rng, pen)]
    kept = [stroke for stroke in strokes if rng.random() >= pen.drop]
    if strokes and not kept:
        kept = [strokes[int(rng.integers(len(strokes)))]]
    return kept, paint(kept, mask, pen.width)


def paint(strokes: list[Stroke], mask: np.ndarray, width: int) -> np.ndarray:
    """The label (H, W) uint8 of strokes: 255 off them, and where they leave their class in the mask."""
    values = np.full(mask.shape, IGNORE, np.uint8)
    for stroke in strokes:
        own = np.full(mask.shape, IGNORE, np.uint8)
        for start, end in zip(stroke.points, (*stroke.points[1:], stroke.points[-1]), strict=True):
            draw_segment(own, start, end, width, stroke.label)
        drawn = (own != IGNORE) & (mask == stroke.label)
        values[drawn] = stroke.label
    return values


def components(region: np.ndarray, pen: Pen, background: bool) -> list[np.ndarray]:
    """The 8-connected parts (H, W) bool of a class that get a stroke, largest first."""
    count, ids, facts, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=8)
    areas = facts[1:, cv2.CC_STAT_AREA]
    order = sorted(range(count - 1), key=lambda i: (-areas[i], i))
    kept = [i for i in order if areas[i] >= pen.smallest]
    if not kept and order and areas[order[0]] >= SMALLEST_LARGEST:
        kept = order[:1]
    if background:
        kept = kept[:1] + [i for i in kept[1:2] if areas[i] >= SECOND_STROKE * region.size]
    return [ids == i + 1 for i in kept]


def draw_paths(component: np.ndarray, rng: np.random.Generator, pen: Pen) -> list[tuple[Point, ...]]:
    """Vertices of the strokes of a component (H, W) bool: one, and as many more as asked for and found."""
    left, top, width, height = cv2.boundingRect(component.astype(np.uint8))
    component = component[top : top + height, left : left + width]
    depth = depths(component)
    least, share, most = CORE_DEPTHS
    core = depth >= max(least, min(share * depth.max(), most))
    deepest = np.unravel_index(depth.argmax(), depth.shape)
    if not core.any():
        core[deepest] = True
    skeleton, strokes = thin(core), []
    if not skeleton.any():  # all four pixels of a square go in one half step
        skeleton = core.copy()
    while len(strokes) <= pen.extra and (not strokes or skeleton.any()):
        path = longest_path(largest_part(skeleton))
        skeleton[tuple(np.array(path).T)] = False
        if not strokes and len(path) < SHORT_PATH * np.sqrt(component.sum()):
            path = max(path, longest_run(component, core, deepest), key=len)
        path = shrink([(x, y) for y, x in path], pen.ratio)
        # Corners of the path, so that rounding leaves them on its pixels.
        pixels = [(round(x), round(y)) for x, y in path]
        vertices = [*pixels[::VERTEX_STEP], *([pixels[-1]] if (len(pixels) - 1) % VERTEX_STEP else [])]
        strokes.append(tuple((left + x, top + y) for x, y in shake(vertices, core, rng, pen.jitter)))
    return strokes


def depths(component: np.ndarray) -> np.ndarray:
    """Distance (H, W) of every pixel from the nearest one outside; the image's border is one of the component.

    OpenCV's last digit depends on where its arrays lie, and so would strokes; squares of distances are whole numbers.
    """
    padded = np.pad(component, 1).astype(np.uint8)
    found = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    return np.sqrt(np.rint(found.astype(np.float64) ** 2))


def shake(vertices: list[Point], core: np.ndarray, rng: np.random.Generator, jitter: float) -> list[Point]:
    """Vertices moved at random; those that would leave the core stay."""
    if jitter == 0.0:
        return vertices
    moved = []
    for x, y in vertices:
        dx, dy = rng.normal(0.0, jitter, 2)
        new = round(x + dx), round(y + dy)
        inside = 0 <= new[1] < core.shape[0] and 0 <= new[0] < core.shape[1] and core[new[1], new[0]]
        moved.append(new if inside else (x, y))
    return moved


def shrink(points: list[tuple[float, float]], ratio: float) -> list[tuple[float, float]]:
    """The middle share `ratio` of an open line by length, with ends on the line; for 0 its middle point alone."""
    line = np.array(points, np.float64)
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
    length = along[-1]
    if ratio == 1.0 or length == 0.0:
        return points[:1] if length == 0.0 else points
    first, last = length * (1 - ratio) / 2, length * (1 + ratio) / 2
    at = np.array([first, last] if ratio > 0.0 else [length / 2])
    ends = np.stack([np.interp(at, along, line[:, axis]) for axis in (0, 1)], 1).tolist()
    inside = line[(along > first) & (along < last)].tolist() if ratio > 0.0 else []
    return [tuple(point) for point in (ends[:1] + inside + ends[1:])]


def thin(region: np.ndarray) -> np.ndarray:
    """Skeleton (H, W) bool, a pixel wide, of a region (Zhang and Suen, CACM 27(3), 1984)."""
    image = np.pad(region, 1).astype(np.uint8)
    while True:
        before = image.sum()
        for odd in (False, True):
            image[1:-1, 1:-1][removable(image, odd)] = 0
        if image.sum() == before:
            return image[1:-1, 1:-1].astype(bool)


def removable(image: np.ndarray, odd: bool) -> np.ndarray:
    """Pixels (H, W) bool that one half step of the thinning takes away from (H + 2, W + 2)."""
    height, width = image.shape[0] - 2, image.shape[1] - 2
    around = [  # from north, clockwise
        image[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        for dy, dx in ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
    ]
    north, _, east, _, south, _, west, _ = around
    count = sum(around)
    turns = sum((a == 0) & (b == 1) for a, b in zip(around, (*around[1:], around[0]), strict=True))
    if odd:
        sides = (north * east * west == 0) & (north * south * west == 0)
    else:
        sides = (north * east * south == 0) & (east * south * west == 0)
    return (image[1:-1, 1:-1] == 1) & (count >= 2) & (count <= 6) & (turns == 1) & sides


def largest_part(region: np.ndarray) -> np.ndarray:
    """The largest 8-connected part of a region that is not empty."""
    count, ids, facts, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=8)
    return ids == 1 + int(facts[1:count, cv2.CC_STAT_AREA].argmax())


def longest_path(region: np.ndarray) -> list[tuple[int, int]]:
    """Pixels (y, x) of the path between the two ends of a thin connected region, found by two searches."""
    pixels = set(zip(*(axis.tolist() for axis in np.nonzero(region)), strict=True))
    end = search(pixels, min(pixels))[0]
    last, before = search(pixels, end)
    path = [last]
    while before[path[-1]] is not None:
        path.append(before[path[-1]])
    return path


def search(pixels: set, start: tuple[int, int]) -> tuple[tuple[int, int], dict]:
    """The pixel farthest from the start, breadth first, and from which pixel each was reached."""
    before, queue, place = {start: None}, deque([start]), start
    while queue:
        place = queue.popleft()
        for dy, dx in NEIGHBOURS:
            near = place[0] + dy, place[1] + dx
            if near in pixels and near not in before:
                before[near] = place
                queue.append(near)
    return place, before


def longest_run(component: np.ndarray, core: np.ndarray, centre: tuple[int, int]) -> list[tuple[int, int]]:
    """Pixels (y, x): the longest run inside the core on the line through the centre along the principal axis."""
    places = np.argwhere(component).astype(np.float64)
    axis = np.linalg.svd(places - places.mean(0), full_matrices=False)[2][0]
    reach = int(np.hypot(*component.shape)) + 1
    line = np.rint(np.array(centre) + np.arange(-reach, reach + 0.5)[:, None] * axis / np.abs(axis).max()).astype(int)
    best, run = [], []
    for y, x in line.tolist():
        inside = 0 <= y < core.shape[0] and 0 <= x < core.shape[1] and core[y, x]
        run = [*run, (y, x)] if inside else []
        best = run if len(run) > len(best) else best
    return best


def to_xml(strokes: list[Stroke], size: tuple[int, int], names: tuple[str, ...]) -> str:
    """Strokes on an image of size (H, W) in the form of ScribbleSup; names: tag of every class."""
    polygons = "".join(
        f"<polygon><tag>{escape(names[stroke.label])}</tag>"
        + "".join(f"<point><X>{x}</X><Y>{y}</Y></point>" for x, y in stroke.points) + "</polygon>\n"
        for stroke in strokes
    )  # fmt: skip
    shape = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    return f"<annotation>{shape}\n{polygons}</annotation>\n"
