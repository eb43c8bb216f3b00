"""From a file (or a drawn scene) to a sample: image (H, W, 3) uint8 RGB and label (H, W) uint8."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from src.data.toy_scenes import draw_scene

Sample = dict[str, np.ndarray]
Size = tuple[int, int]  # (H, W)

# Flags of OpenCV by how many times smaller than the file the image becomes
DECODERS = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_COLOR_8,
}
ORIENTATION = 0x0112  # EXIF tag; 1: as stored
JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
PNG_START, GREY_8_BIT = b"\x89PNG\r\n\x1a\n", b"\x08\x00"  # the latter at 24: bits and kind of colour
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
    return read_photo(path)[0]


def read_photo(path: Path, choose: Callable[[Size], int] | None = None) -> tuple[np.ndarray, Size, int]:
    """As `read_image`, but a JPEG may be decoded 2, 4 or 8 times smaller, which takes less time.

    choose: size of the image -> how many times smaller. Only JPEG files are asked for, and none that EXIF turns, where
    the last pixels, which need not be whole, would not be the lower and the right ones.
    Returns the image (ceil(H / r), ceil(W / r), 3), (H, W) of the file, r. A pixel is about the mean of the r x r
    pixels of the file that it covers.
    """
    data = path.read_bytes()
    if is_cut_off(data):
        raise ValueError(f"truncated JPEG {path}: it has no end marker; copy the file again or remove it")
    size, reduction = _reduce(data, choose) if choose and data.startswith(JPEG_START) else (None, 1)
    image = _decode(data, DECODERS[reduction])
    if image is None:
        raise ValueError(
            f"cannot decode image {path} ({len(data)} bytes): damaged, cut off or of an unknown format; "
            f"known are JPEG, PNG, BMP, TIFF and WebP. Copy the file again or convert it"
        )
    return image, size or image.shape[:2], reduction


def is_cut_off(data: bytes) -> bool:
    """Whether a file is a JPEG without an end marker behind its last scan; bytes behind the marker are harmless.

    Decoders fill what is missing with grey and report success. Neither marker occurs within a scan, and a thumbnail
    within the header has its own before it.
    """
    return data.startswith(JPEG_START) and data.rfind(JPEG_END) <= data.rfind(JPEG_SCAN)


def _decode(data: bytes, flags: int) -> np.ndarray | None:
    """What OpenCV makes of a file's bytes; None for what it cannot decode."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None  # it raises for empty input
    except cv2.error:  # a damaged header may name a size beyond OpenCV's limits
        return None


def _reduce(data: bytes, choose: Callable[[Size], int]) -> tuple[Size | None, int]:
    """(H, W) in the header of a JPEG and what is chosen for it; (None, 1) where it is turned or cannot be read."""
    try:
        with Image.open(io.BytesIO(data)) as header:
            if header.getexif().get(ORIENTATION, 1) != 1:
                return None, 1
            size = header.size[::-1]
    except PILLOW_ERRORS:  # the decoder says what is wrong
        return None, 1
    return size, choose(size)


def read_mask(path: Path) -> np.ndarray:
    """Reads the indices of a label file as (H, W): palette and 16-bit masks keep their indices.

    uint8 where the file has 8 bits a pixel or fewer, else int32.
    Raises ValueError for colour or JPEG masks, whose values are not indices, and for damaged files.
    """
    try:
        data = path.read_bytes()
        if data.startswith(PNG_START) and data[24:26] == GREY_8_BIT:
            # as Pillow reads them, but checksums are checked and other threads may work meanwhile
            values = _decode(data, cv2.IMREAD_UNCHANGED)
            if values is None:
                raise OSError("damaged or cut off")
            if values.ndim == 2:  # a transparent grey makes it four channels
                return values
        with Image.open(io.BytesIO(data)) as mask:
            _check_mask_kind(mask, path)
            stored_as = mask.tile[0].args if mask.tile else None  # read before the pixels: loading forgets it
            values = np.asarray(mask)
    except PILLOW_ERRORS as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"cannot read label file {path} ({error}); copy the file again or export it anew") from error
    if values.dtype != np.uint8:
        values = values.astype(np.uint8 if values.dtype == bool else np.int32)
    factor = SPREAD.get(stored_as, 1) if isinstance(stored_as, str) else 1
    return values if factor == 1 else values // factor


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
    free = set(range(256)).difference(table.values()) if values.dtype == np.uint8 else ()
    if free:  # an id that is not in use stands for values that are not in the table
        label, missing = _look_up_bytes(values, table, max(free))
    else:
        label, missing = _look_up(values, table)
    if missing is not None:
        unknown, counts = np.unique(values[missing], return_counts=True)
        shown = ", ".join(f"{value} ({count} px)" for value, count in zip(unknown[:5], counts[:5], strict=True))
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(
            f"label file {source} holds values outside the table: {shown}{more}; allowed: {_ranges(table)}. "
            f"Correct the file or add the values to the table of the data set"
        )
    return label


def _look_up_bytes(values: np.ndarray, table: dict[int, int], free: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The ids, and where values are not in the table: None if nowhere."""
    lookup = np.full(256, free, np.uint8)
    for value, class_id in table.items():
        if value < len(lookup):
            lookup[value] = class_id
    label = cv2.LUT(values, lookup)
    missing = label == free
    return label, missing if missing.any() else None


def _look_up(values: np.ndarray, table: dict[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
    """As `_look_up_bytes`, for any integers."""
    lookup = np.full(max(table) + 3, -1, np.int16)  # shifted by one: the first and the last entry stand for values
    lookup[np.array(list(table)) + 1] = list(table.values())  # below 0 and beyond the table, where clipping puts them
    label = lookup.take(values.astype(np.int64) + 1, mode="clip")
    return label.astype(np.uint8), label < 0 if label.min(initial=0) < 0 else None


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


def read_item(item: Item, table: dict[int, int], choose: Callable[[Size], int] | None = None) -> Sample:
    """Reads one item: image (H, W, 3) uint8 RGB, label (H, W) uint8 class ids.

    And `category` (), where the item asks for one class. table: of the data set; an item's own goes before it. choose:
    see `read_photo`; where it makes the image r times smaller, the sample says so by `reduction` (), and the label
    keeps its size.
    Raises ValueError for damaged files, other kinds of masks, values outside the table, and sizes that differ.
    """
    reduction = 1
    if isinstance(item, SceneItem):
        image, values = draw_scene(item.seed, item.index, item.size)
        source: Path | str = item.name
    else:
        image, size, reduction = read_photo(item.image, choose)
        values, source = read_mask(item.label), item.label
        table = table if item.table is None else item.table
        if size != values.shape:
            raise ValueError(
                f"image {item.image} is {size[0]} x {size[1]} (height x width), but its label "
                f"{item.label} is {values.shape[0]} x {values.shape[1]}; both must have one size "
                f"(an EXIF rotation of the image counts)"
            )
    label = to_class_ids(values, table, source)
    sample = as_sample(image, label, reduction)
    category = getattr(item, "category", None)
    return sample if category is None else {**sample, "category": np.array(category)}


def as_sample(image: np.ndarray, label: np.ndarray, reduction: int = 1) -> Sample:
    """The keys that there are before any transform."""
    sample = {"image": image, "label": label}
    return sample if reduction == 1 else {**sample, "reduction": np.array(reduction)}
