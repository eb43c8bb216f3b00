"""One image with its label file, looked at closely: what is wrong with it, and which values it holds.

Letters: H x W image.
"""

import hashlib
import io
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from src.data.classes import Colour
from src.data.reading import (
    INDEX_MODES,
    PILLOW_ERRORS,
    Item,
    SceneItem,
    read_image,
    read_item,
    read_mask,
    to_class_ids,
)
from src.doctor import files

MAX_COLOURS = 256  # of a colour mask: more are no classes
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Problem:
    """Something wrong with a file; the text names the file."""

    code: str
    file: str
    text: str


@dataclass
class Pair:
    """What was found.

    digest: of the decoded image, equal for equal pixels. size: (H, W) of the label. values: value in the label file ->
    pixels. classes: class id or IGNORE -> pixels. unknown: values that the table does not hold. shown: index -> colour
    of a palette mask. colours: of a colour mask. own_table: whether the values are not those of the data set's table.
    """

    name: str
    label: str
    problems: list[Problem] = field(default_factory=list)
    digest: bytes | None = None
    size: tuple[int, int] | None = None
    values: dict[int, int] = field(default_factory=dict)
    classes: Counter = field(default_factory=Counter)
    unknown: set[int] = field(default_factory=set)
    shown: dict[int, Colour] = field(default_factory=dict)
    colours: frozenset[Colour] = frozenset()
    image_kind: str = ""
    mask_kind: str = ""
    own_table: bool = False

    def add(self, code: str, file: Path, text: str) -> None:
        self.problems.append(Problem(code, str(file), text))

    def count(self, values: np.ndarray, table: dict[int, int]) -> None:
        """Takes the values (H, W) of the label; table: value -> class id or IGNORE."""
        self.size, self.values = values.shape, count_values(values)
        self.unknown = self.values.keys() - table.keys()
        for value in self.values.keys() - self.unknown:
            self.classes[table[value]] += self.values[value]


def inspect(item: Item, table: dict[int, int]) -> Pair:
    """Looks at one item. Never raises for what a file holds.

    table: value in the label file -> class id; an item's own goes before it.
    """
    if isinstance(item, SceneItem):
        sample = read_item(item, table)
        pair = Pair(item.name, item.name, image_kind="drawn", mask_kind="drawn")
        pair.digest = digest(sample["image"])
        pair.count(sample["label"], table)
        return pair
    table = table if item.table is None else item.table
    pair = Pair(item.name, str(item.label), own_table=item.table is not None)
    image = inspect_image(item.image, pair)
    values = inspect_mask(item.label, pair)
    if image is not None:
        pair.digest = digest(image)
    if values is None:
        return pair
    pair.count(values, table)
    if image is not None and image.shape[:2] != values.shape:
        compare_sizes(item, image.shape[:2], values.shape, pair)
    if pair.unknown:
        try:
            to_class_ids(values, table, item.label)
        except ValueError as error:
            pair.add("values_outside_table", item.label, str(error))
    return pair


def inspect_image(path: Path, pair: Pair) -> np.ndarray | None:
    """The image (H, W, 3) RGB, None where it cannot be read; what is wrong is added to the pair."""
    data = read_bytes(path, "image", pair)
    if data is None:
        return None
    found = files.damage(data)
    kind = f"image_{found[0]}" if found else f"image_{files.UNREADABLE}"
    try:
        image = read_image(path)
    except (ValueError, OSError) as error:
        pair.add(kind, path, str(error))
        return None
    if found:
        pair.add(kind, path, f"image {path} {found[1]}")
        return None
    turn = files.orientation(data)
    if turn in (2, 3, 4):  # 5 to 8 exchange the sides, so that the sizes tell
        pair.add(
            "image_turned", path,
            f"image {path} has EXIF orientation {turn}: it is read mirrored or upside down, its label {pair.label} is "
            "taken as it is stored",
        )  # fmt: skip
    pair.image_kind = {b"\xff\xd8": "JPEG", b"\x89P": "PNG"}.get(data[:2], path.suffix.lower().lstrip("."))
    return image


def inspect_mask(path: Path, pair: Pair) -> np.ndarray | None:
    """The values (H, W) of a label file, None where it cannot be read; what is wrong is added to the pair."""
    data = read_bytes(path, "mask", pair)
    if data is None:
        return None
    found = files.damage(data)
    code, detail = f"mask_{found[0] if found else files.UNREADABLE}", ""
    try:
        with Image.open(io.BytesIO(data)) as mask:
            pair.mask_kind = f"{mask.format} {mask.mode}"
            if not found and (mask.format in ("JPEG", "MPO") or mask.mode not in INDEX_MODES):
                code, detail = explain_kind(mask, pair)
            palette = mask.getpalette() if mask.mode == "P" else None
        values = read_mask(path)
    except PILLOW_ERRORS:
        pair.add(code, path, f"label file {path} {found[1] if found else 'is no image of a known kind'}")
        return None
    except ValueError as error:
        pair.add(code, path, f"{error}{detail}")
        return None
    if found:
        pair.add(code, path, f"label file {path} {found[1]}")
        return None
    if palette:
        used = [value for value in np.flatnonzero(np.bincount(values.ravel())) if 3 * value + 2 < len(palette)]
        pair.shown = {int(value): tuple(palette[3 * value : 3 * value + 3]) for value in used}
    return values


def explain_kind(mask: Image.Image, pair: Pair) -> tuple[str, str]:
    """(code, what else can be said) of a label file whose values are no indices."""
    if mask.format in ("JPEG", "MPO"):
        return "mask_jpeg", ""
    if mask.mode in ("LA", "PA"):
        return "mask_alpha", ". It is an index image with an alpha channel: drop that channel"
    if mask.mode not in ("RGB", "RGBA"):
        return "mask_kind", ""
    colours = mask.convert("RGB").getcolors(MAX_COLOURS) or []
    pair.colours = frozenset(colour for _, colour in colours)
    if colours and all(len(set(colour)) == 1 for colour in pair.colours):
        levels = ", ".join(str(colour[0]) for colour in sorted(pair.colours)[:8])
        return "mask_rgb", f". Its three channels are equal (values {levels}): save one of them"
    number = f"{len(colours)} colours" if colours else f"more than {MAX_COLOURS} colours: is it the photo?"
    return "mask_rgb", f". It has {number}"


def read_bytes(path: Path, what: str, pair: Pair) -> bytes | None:
    """The content of a file, None where there is none to be had: a broken link, no right to read, a failing disk."""
    try:
        return path.read_bytes()
    except OSError as error:
        pair.add(f"{what}_{files.UNREADABLE}", path, f"cannot read {path}: {error.strerror}")
        return None


def compare_sizes(item: Item, image: tuple[int, int], label: tuple[int, int], pair: Pair) -> None:
    """Adds what sizes that differ mean."""
    text = (
        f"image {item.image} is {image[0]} x {image[1]} (height x width), but its label {item.label} is "
        f"{label[0]} x {label[1]}"
    )
    turned = files.orientation(item.image.read_bytes()) >= 5
    if turned and image == label[::-1]:
        pair.add("size_turned", item.image, f"{text}: the image's EXIF orientation exchanges its sides")
    else:
        pair.add("size_differs", item.label, text)


def count_values(values: np.ndarray) -> dict[int, int]:
    """Pixels of every value of an integer array."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low >= 0 and high < 65536:
        counts = np.bincount(values.ravel())
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    unique, counts = np.unique(values, return_counts=True)
    return dict(zip(unique.tolist(), counts.tolist(), strict=True))


def digest(image: np.ndarray) -> bytes:
    """A hash of size and pixels."""
    image = np.ascontiguousarray(image)
    return hashlib.blake2b(image, digest_size=DIGEST_BYTES, key=repr(image.shape).encode()).digest()
