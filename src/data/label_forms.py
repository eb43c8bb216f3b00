"""The forms in which published labels come, besides images, each read as (H, W) values.

.mat files of SBD, COCO-Stuff and PASCAL-Context, the run lengths of the PASCAL detail annotation, the strokes of
ScribbleSup, clicks on objects and background.
"""

import io
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from scipy.io import loadmat

from src.constants import IGNORE

# The ids of the 59 classes among the 459, in the order of the classes; 0 and all other ids are background.
CONTEXT_IDS = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159,
    162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397,
    415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip
CONTEXT_COUNT = 459
# What ScribbleSup calls the classes of VOC, in their order, and how VOC spells those that differ.
SCRIBBLE_TAGS = (
    "background", "plane", "bike", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "table", "dog",
    "horse", "motorbike", "person", "plant", "sheep", "sofa", "train", "monitor",
)  # fmt: skip
VOC_SPELLINGS = {
    "aeroplane": "plane", "bicycle": "bike", "diningtable": "table", "pottedplant": "plant", "tvmonitor": "monitor",
}  # fmt: skip
Point = tuple[int, int]  # x to the right, y down
OLD_COCO_STUFF = 172  # names in a file of version 1.0, whose values count otherwise


def read_mat(path: Path, key: str) -> dict[str, Any]:
    """The variables of a .mat file; ValueError where it is damaged or lacks the key."""
    data = io.BytesIO(path.read_bytes())
    try:
        content = loadmat(data)
    except Exception as error:  # a damaged file raises whatever the parser meets first
        raise ValueError(f"cannot read {path} ({error}); unpack the download again") from error
    if key not in content:
        raise ValueError(f"{path} holds no {key!r}, only {', '.join(k for k in content if not k.startswith('_'))}")
    return content


def read_sbd(path: Path) -> np.ndarray:
    """The classes of an SBD file (dataset/cls): 0 background, 1..20."""
    struct = read_mat(path, "GTcls")["GTcls"]
    if "Segmentation" not in (struct.dtype.names or ()) or struct.size != 1:
        raise ValueError(f"{path}: 'GTcls' is no struct with a field 'Segmentation'; take dataset/cls of SBD")
    return _as_label(struct["Segmentation"].item(), path)


def read_coco_stuff(path: Path) -> np.ndarray:
    """The published ids of a COCO-Stuff 10K file: 0 unlabelled, 1..182. ValueError for version 1.0."""
    content = read_mat(path, "S")
    if np.size(content.get("names", ())) == OLD_COCO_STUFF:
        raise ValueError(f"{path} is of version 1.0, whose values mean other classes; download cocostuff-10k-v1.1")
    return _as_label(content["S"], path)


def context_table() -> dict[int, int]:
    """Id among the 459 -> value in our label files: 0 background, 1..59."""
    return {value: CONTEXT_IDS.index(value) + 1 if value in CONTEXT_IDS else 0 for value in range(CONTEXT_COUNT + 1)}


def read_context(path: Path) -> np.ndarray:
    """The ids 0..459 of a PASCAL-Context file (trainval/*.mat)."""
    return _as_label(read_mat(path, "LabelMap")["LabelMap"], path)


def _as_label(values: Any, path: Path) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 2 or values.dtype.kind not in "uif":
        raise ValueError(f"{path} holds {values.dtype} of {values.shape} in place of a label (H, W) of numbers")
    return values.astype(np.int32)


def draw_regions(regions: list[dict[str, Any]], size: tuple[int, int]) -> np.ndarray:
    """The ids (H, W) of regions, in their order: each has `category_id` and `segmentation`, its run lengths."""
    values = np.zeros(size, np.int32)
    for region in regions:
        values[decode_runs(region["segmentation"], size)] = region["category_id"]
    return values


def decode_runs(runs: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) of run lengths as COCO writes them: of 0 and 1 in turn, down the columns.

    `counts` is a list of lengths, or text with five bits a character, lowest first, the sixth bit saying that more
    follow; from the fourth length on, the difference to the length two before. Raises ValueError where they do not fill
    `size`.
    """
    if not isinstance(runs, dict) or not {"counts", "size"} <= runs.keys():
        kind = "polygons" if isinstance(runs, list) else "no counts and size"
        raise ValueError(f"'segmentation' holds {kind} in place of run lengths; download the annotation again")
    counts = runs["counts"]
    lengths = _read_lengths(counts) if isinstance(counts, str) else counts
    if not isinstance(lengths, list) or not all(isinstance(length, int) for length in lengths):
        raise ValueError(f"'counts' of run lengths are a list of integers or text, not {str(counts)[:40]}")
    height, width = size
    if runs["size"] != [height, width] or sum(lengths) != height * width or min(lengths) < 0:
        raise ValueError(
            f"run lengths for {runs['size']} (height, width) cover {sum(lengths)} pixels, the image has "
            f"{height} x {width}; download the annotation again"
        )
    flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return flat.reshape(width, height).T


def _read_lengths(text: str) -> list[int]:
    lengths: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:  # the highest bit is the sign
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value, shift = 0, 0
    return lengths


def draw_scribbles(text: str, width: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The strokes of a ScribbleSup file as classes (H, W), 255 elsewhere, and the size (H, W) that the file states.

    A polygon is an open line, drawn `width` pixels wide with round ends; later ones go over earlier ones.
    Raises ValueError for other tags, strokes without points or outside the image and texts that are no such file.
    """
    try:
        tree = ElementTree.fromstring(text)
        size = tuple(int(tree.findtext(f"size/{side}", "")) for side in ("height", "width"))
        strokes = [
            (polygon.findtext("tag", "").strip(), [_point(point) for point in polygon.findall("point")])
            for polygon in tree.iter("polygon")
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"no scribble annotation: {error}") from error
    values = np.full(size, IGNORE, np.uint8)
    for tag, points in strokes:
        name = VOC_SPELLINGS.get(tag, tag)
        if name not in SCRIBBLE_TAGS:
            raise ValueError(f"unknown tag {tag!r}; known: {', '.join((*SCRIBBLE_TAGS, *VOC_SPELLINGS))}")
        if not points:
            raise ValueError(f"a stroke of {tag!r} has no points")
        outside = [(x, y) for x, y in points if not (0 <= x <= size[1] and 0 <= y <= size[0])]
        if outside:  # x = W and y = H are clicks on the edge
            raise ValueError(
                f"a stroke of {tag!r} goes through {outside[0]} (x, y), outside the image of {size[0]} x {size[1]} "
                "(height x width); it belongs to another image"
            )
        for start, end in zip(points, [*points[1:], points[-1]], strict=True):
            draw_segment(values, start, end, width, SCRIBBLE_TAGS.index(name))
    return values, size


def draw_clicks(clicks: list[dict[str, Any]], size: tuple[int, int], width: int) -> np.ndarray:
    """Clicks on an image of size (H, W), of `x`, `y` and class `cls`, as discs in a label (H, W) uint8, 255 elsewhere.

    Later ones go over earlier ones. Raises ValueError for clicks outside the image and classes that VOC has not.
    """
    values = np.full(size, IGNORE, np.uint8)
    for click in clicks:
        try:
            x, y, value = round(click["x"]), round(click["y"]), click["cls"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{click} is no click; one has numbers x, y and cls") from error
        if not (0 <= x <= size[1] and 0 <= y <= size[0]):  # x = W and y = H are clicks on the edge
            raise ValueError(
                f"a click at {x, y} (x, y) lies outside the image of {size[0]} x {size[1]} (height x width)"
            )
        if value not in range(len(SCRIBBLE_TAGS)):
            raise ValueError(f"a click has class {value!r}; VOC has 0 to {len(SCRIBBLE_TAGS) - 1}")
        place = min(x, size[1] - 1), min(y, size[0] - 1)
        draw_segment(values, place, place, width, value)
    return values


def draw_segment(values: np.ndarray, start: Point, end: Point, width: int, value: int) -> None:
    """Sets every pixel of (H, W) whose centre is at most width / 2 away from the line between two points (x, y).

    Exactly `width` pixels along an axis, where OpenCV's lines of 3 are 5 wide.
    """
    reach = width // 2
    (left, right), (top, bottom) = (sorted(pair) for pair in zip(start, end, strict=True))
    left, top = max(left - reach, 0), max(top - reach, 0)
    y, x = np.ogrid[top : max(bottom + reach + 1, top), left : max(right + reach + 1, left)]
    y, x = y[y[:, 0] < values.shape[0]], x[:, x[0] < values.shape[1]]
    along_x, along_y = end[0] - start[0], end[1] - start[1]
    length = max(along_x**2 + along_y**2, 1)
    share = np.clip(((x - start[0]) * along_x + (y - start[1]) * along_y) / length, 0.0, 1.0)
    distance = (x - start[0] - share * along_x) ** 2 + (y - start[1] - share * along_y) ** 2
    values[top : top + y.size, left : left + x.size][distance <= width**2 / 4] = value


def _point(point: ElementTree.Element) -> Point:
    return int(point.findtext("X", "")), int(point.findtext("Y", ""))
