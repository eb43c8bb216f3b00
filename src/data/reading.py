"""From a file (or a drawn scene) to a sample: image (H, W, 3) uint8 RGB, label (H, W) uint8, valid (H, W) uint8."""

import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from src.data.toy_scenes import draw_scene

Sample = dict[str, np.ndarray]

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
INDEX_MODES = ("1", "P", "L", "I", "I;16", "I;16B", "I;16L")  # pillow's single-channel integer modes
SPREAD = {"L;2": 85, "L;4": 17}  # pillow stretches 2- and 4-bit greys to 0..255 by these factors
PILLOW_ERRORS = (OSError, SyntaxError, Image.DecompressionBombError)  # a broken PNG chunk; a header's absurd size


@dataclass(frozen=True)
class FileItem:
    """An image with its label file; name is the path below the split's folder without suffix.

    table: value in the label file -> class id, in place of the data set's where a split has its own; category: the
    class id that a task with one class at a time asks for.
    """

    name: str
    image: Path
    label: Path
    table: dict[int, int] | None = None
    category: int | None = None


@dataclass(frozen=True)
class SceneItem:
    """A drawn toy scene; size is (H, W)."""

    name: str
    seed: int
    index: int
    size: tuple[int, int]


Item = FileItem | SceneItem


def read_image(path: Path) -> np.ndarray:
    """Reads a photo as (H, W, 3) uint8 RGB.

    Decoded by OpenCV as a colour image: grey becomes three equal channels, alpha is dropped, 16 bits become 8, and an
    EXIF orientation is applied. Raises ValueError for a file that is no image or is cut off.
    """
    data = path.read_bytes()
    # OpenCV fills the missing part of a JPEG with grey and reports success, so the end is checked here. Bytes after the
    # end marker are harmless; only then is the slower decoder asked.
    if data.startswith(JPEG_START) and not data.endswith(JPEG_END):
        try:
            Image.open(io.BytesIO(data)).load()
        except PILLOW_ERRORS as error:
            raise ValueError(f"truncated JPEG {path} ({error}); copy the file again or remove it") from error
    # OpenCV raises for empty input and returns None for anything else that it cannot decode
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error:  # a damaged header may name a size beyond OpenCV's limits
        image = None
    if image is None:
        raise ValueError(
            f"cannot decode image {path} ({len(data)} bytes): damaged, cut off or of an unknown format; "
            f"known are JPEG, PNG, BMP, TIFF and WebP. Copy the file again or convert it"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_mask(path: Path) -> np.ndarray:
    """Reads the indices of a label file as (H, W) int32: palette and 16-bit masks keep their indices.

    Raises ValueError for colour or JPEG masks, whose values are not indices, and for damaged files.
    """
    try:
        with Image.open(path) as mask:
            _check_mask_kind(mask, path)
            stored_as = mask.tile[0].args if mask.tile else None  # read before the pixels: loading forgets it
            values = np.asarray(mask).astype(np.int32)
    except PILLOW_ERRORS as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"cannot read label file {path} ({error}); copy the file again or export it anew") from error
    factor = SPREAD.get(stored_as, 1) if isinstance(stored_as, str) else 1
    return values // factor


def _check_mask_kind(mask: Image.Image, path: Path) -> None:
    remedy = "save the mask as PNG with one channel of class indices (8 bit, 16 bit or palette)"
    if mask.format in ("JPEG", "MPO"):
        raise ValueError(f"label file {path} is a JPEG, whose compression changes the values; {remedy}")
    if mask.mode not in INDEX_MODES:
        raise ValueError(
            f"label file {path} has colour mode {mask.mode!r}, but a mask needs one index a pixel "
            f"(modes {', '.join(INDEX_MODES)}); map its colours to indices and {remedy}"
        )


def to_class_ids(values: np.ndarray, table: dict[int, int], source: Path | str) -> np.ndarray:
    """Looks every value (H, W) up in the table; returns class ids (H, W) uint8. source is named in the error."""
    lookup = np.full(max(table) + 3, -1, np.int16)  # shifted by one: the first and the last entry stand for values
    lookup[np.array(list(table)) + 1] = list(table.values())  # below 0 and beyond the table, where clipping puts them
    label = lookup.take(values.astype(np.int64) + 1, mode="clip")
    if label.min(initial=0) < 0:
        unknown, counts = np.unique(values[label < 0], return_counts=True)
        shown = ", ".join(f"{value} ({count} px)" for value, count in zip(unknown[:5], counts[:5], strict=True))
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(
            f"label file {source} holds values outside the table: {shown}{more}; allowed: {_ranges(table)}. "
            f"Correct the file or add the values to the table of the data set"
        )
    return label.astype(np.uint8)


def _ranges(table: dict[int, int]) -> str:
    """0..10, 255 rather than every value on its own."""
    parts: list[list[int]] = []
    for value in sorted(table):
        if parts and value == parts[-1][1] + 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    return ", ".join(str(low) if low == high else f"{low}..{high}" for low, high in parts)


def item_size(item: Item) -> tuple[int, int]:
    """(H, W) of an item without decoding it: of its label file, which no EXIF rotation changes."""
    if isinstance(item, SceneItem):
        return item.size
    try:
        with Image.open(item.label) as mask:
            return mask.size[::-1]
    except PILLOW_ERRORS as error:
        raise ValueError(f"cannot read label file {item.label} ({error}); copy the file again") from error


def read_item(item: Item, table: dict[int, int]) -> Sample:
    """Reads one item: image (H, W, 3) uint8 RGB, label (H, W) uint8 class ids, valid (H, W) uint8 ones.

    And `category` (), where the item asks for one class. table: of the data set; an item's own goes before it.
    Raises ValueError for damaged files, other kinds of masks, values outside the table, and sizes that differ.
    """
    if isinstance(item, SceneItem):
        image, values = draw_scene(item.seed, item.index, item.size)
        source: Path | str = item.name
    else:
        image, values, source = read_image(item.image), read_mask(item.label), item.label
        table = table if item.table is None else item.table
        if image.shape[:2] != values.shape:
            raise ValueError(
                f"image {item.image} is {image.shape[0]} x {image.shape[1]} (height x width), but its label "
                f"{item.label} is {values.shape[0]} x {values.shape[1]}; both must have one size "
                f"(an EXIF rotation of the image counts)"
            )
    label = to_class_ids(values, table, source)
    sample = {"image": image, "label": label, "valid": np.ones(label.shape, np.uint8)}
    category = getattr(item, "category", None)
    return sample if category is None else {**sample, "category": np.array(category)}
