"""Broken data sets: how a clean one is spoilt, and what the doctor must say of it."""

import io
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from tests.doctor_data import (
    NAMES,
    ONE_BASED,
    PALETTE,
    SIZE,
    as_jpeg,
    change_labels,
    image,
    label,
    labels,
    look_up,
    only,
    palette_masks,
    put_value,
    rename,
    save_all,
    values,
    with_ignore,
    write_clean,
)


def with_exif(orientation: int) -> Callable[[Path], None]:
    """Marks an upright image as turned."""

    def spoil(root: Path) -> None:
        photo, tag = as_jpeg(root), Image.Exif()
        tag[0x0112] = orientation
        Image.open(photo).save(photo, exif=tag)

    return spoil


def cut(file: Path, share: float = 0.6) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])


def flip_bit(file: Path, chunk: bytes) -> None:
    """Changes a byte in the content of a chunk of a PNG, not its checksum."""
    data = bytearray(file.read_bytes())
    data[data.index(chunk) + 12] ^= 1
    file.write_bytes(data)


def false_checksum(file: Path) -> None:
    """A PNG whose pixels are as they were, with an extra text chunk that has a wrong checksum."""
    data = file.read_bytes()
    content = b"tEXt" + b"Comment\0x"
    wrong = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content) ^ 1)
    file.write_bytes(data[:33] + wrong + data[33:])


def colour_mask(root: Path, colours=PALETTE) -> None:
    change_labels(root, lambda mask: np.array(colours, np.uint8)[mask])


def blur(root: Path) -> None:
    """Masks with ignored pixels, blurred as by an interpolating resize: values in between."""
    for file in labels(root):
        mask = values(file)
        mask[:12] = 255
        Image.fromarray(mask).filter(ImageFilter.GaussianBlur(2.0)).save(file)


def grey_photos(root: Path) -> None:
    """Photos in the place of the masks."""
    for file in labels(root):
        Image.open(root / "images" / file.relative_to(root / "labels")).convert("L").save(file)


def speck(root: Path) -> None:
    """One pixel of tree in the whole training split of larger images."""
    shutil.rmtree(root)
    write_clean(root, size=(100, 150))
    only(root, "train", (0, 1), 0)
    mask = values(label(root))
    mask[0, 0] = 2
    Image.fromarray(mask).save(label(root))


def reencode(root: Path) -> None:
    """An image of the validation split that is a training image in another format."""
    photo = Image.open(image(root, 2))
    image(root, 0, "val").unlink()
    photo.save(image(root, 0, "val").with_suffix(".bmp"))


def make_huge(root: Path) -> None:
    """A bitmap whose header names an absurd size."""
    buffer = io.BytesIO()
    Image.open(image(root)).save(buffer, "BMP")
    data = bytearray(buffer.getvalue())
    data[18:26] = (40_000).to_bytes(4, "little") * 2
    image(root).with_suffix(".bmp").write_bytes(data)
    image(root).unlink()


def blank_half(file: Path) -> None:
    """As a copy ends that reserved the room of the whole file before."""
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


class Case(NamedTuple):
    """spoil: makes a clean set a broken one; code: what the doctor must say; parts: of its text and remedy."""

    spoil: Callable[[Path], object]
    code: str
    parts: tuple[str, ...]


TRAIN_1 = "train/train_1.png"
BROKEN = {
    "image cut off, PNG": Case(lambda r: cut(image(r)), "image_truncated", (f"images/{TRAIN_1}",)),
    "image cut off, JPEG": Case(lambda r: cut(as_jpeg(r)), "image_truncated", ("images/train/train_1.jpg",)),
    "JPEG without end marker": Case(
        lambda r: as_jpeg(r, drop=2), "image_truncated", ("images/train/train_1.jpg",),
    ),
    "JPEG with zeros for its second half": Case(
        lambda r: blank_half(as_jpeg(r)), "image_truncated", ("images/train/train_1.jpg", "no end marker"),
    ),
    "image with a changed byte": Case(lambda r: flip_bit(image(r), b"IDAT"), "image_corrupt", (f"images/{TRAIN_1}",)),
    "image with a false checksum": Case(
        lambda r: false_checksum(image(r)), "image_corrupt", (f"images/{TRAIN_1}", "tEXt", "checksum"),
    ),
    "empty image": Case(lambda r: image(r).write_bytes(b""), "image_empty", (f"images/{TRAIN_1}",)),
    "text as image": Case(lambda r: image(r).write_text("<html>"), "image_unreadable", (f"images/{TRAIN_1}",)),
    "image behind a broken link": Case(
        lambda r: (image(r).unlink(), image(r).symlink_to(r / "gone.png")), "image_unreadable", (f"images/{TRAIN_1}",),
    ),
    "image of absurd size": Case(make_huge, "image_unreadable", ("images/train/train_1.bmp",)),
    "image upside down by EXIF": Case(with_exif(3), "image_turned", ("train_1.jpg", "orientation 3")),
    "image on its side by EXIF": Case(
        with_exif(6), "size_turned", ("train_1.jpg is 128 x 96", f"{TRAIN_1} is 96 x 128", "EXIF"),
    ),
    "mask cut off": Case(lambda r: cut(label(r)), "mask_truncated", (f"labels/{TRAIN_1}",)),
    "mask with a changed byte": Case(lambda r: flip_bit(label(r), b"IDAT"), "mask_corrupt", (f"labels/{TRAIN_1}",)),
    "mask with a false checksum": Case(
        lambda r: false_checksum(label(r)), "mask_corrupt", (f"labels/{TRAIN_1}", "tEXt"),
    ),
    "empty mask": Case(lambda r: label(r).write_bytes(b""), "mask_empty", (f"labels/{TRAIN_1}",)),
    "text as mask": Case(lambda r: label(r).write_text("0 0 1"), "mask_unreadable", (f"labels/{TRAIN_1}",)),
    "colour masks": Case(
        lambda r: colour_mask(r, ((1, 2, 3), (4, 5, 6), (7, 8, 9))), "mask_rgb",
        ("labels/train/train_0.png", "'RGB'", "colours"),
    ),
    "colour masks in the palette": Case(
        lambda r: (colour_mask(r), (r / "classes.yaml").write_text(f"{{names: {list(NAMES)}, "
                   f"palette: {[list(colour) for colour in PALETTE]}}}\n")),
        "mask_palette_colours", ("(128, 64, 128) road", "index"),
    ),
    "grey masks stored as RGB": Case(
        lambda r: save_all(r, "RGB"), "mask_rgb", ("labels/train/train_0.png", "channels are equal (values 0, 1, 2)"),
    ),
    "masks with alpha": Case(lambda r: save_all(r, "LA"), "mask_alpha", ("labels/train/train_0.png", "'LA'")),
    "colour mask with alpha": Case(lambda r: save_all(r, "RGBA"), "mask_rgb", ("labels/train/train_0.png", "'RGBA'")),
    "masks of floats": Case(
        lambda r: save_all(r, "F", ".tiff"), "mask_kind", ("labels/train/train_0.tiff", "'F'"),
    ),
    "JPEG masks": Case(lambda r: save_all(r, "L", ".jpg"), "mask_jpeg", ("labels/train/train_0.jpg", "is a JPEG")),
    "palette in another order": Case(
        lambda r: (palette_masks(r, (0, 2, 1)), (r / "classes.yaml").write_text(f"{{names: {list(NAMES)}, "
                   f"palette: {[list(colour) for colour in PALETTE]}}}\n")),
        "mask_palette_order", ("1 shows the colour of 'tree' but stands for 'sky'", "train/train_0.png"),
    ),
    "sizes that differ": Case(
        lambda r: Image.fromarray(values(label(r))[:-1]).save(label(r)), "size_differs",
        (f"images/{TRAIN_1} is 24 x 32", f"labels/{TRAIN_1} is 23 x 32"),
    ),
    "a value outside the table": Case(
        lambda r: put_value(r, 77), "values_outside_table", (f"labels/{TRAIN_1}", "77 (5 px)", "allowed: 0..2, 255"),
    ),
    "one-based, nothing unlabelled": Case(
        look_up(1, 2, 3), "labels_one_based",
        ("train/train_0.png", "Values found: 1..3", "table: {0: ignore, 1: road, 2: sky, 3: tree, 255: ignore}"),
    ),
    "one-based, 0 unlabelled": Case(
        lambda r: (look_up(1, 2, 3)(r), put_value(r, 0)), "labels_one_based",
        ("Values found: 0..3", "table: {0: ignore, 1: road"),
    ),
    "one-based without the last value": Case(
        lambda r: (look_up(1, 2, 3)(r), (r / "classes.yaml").write_text(
            "{names: [road, sky, tree], table: {0: road, 1: sky, 2: tree, 3: ignore}}\n")),
        "labels_one_based", ("'road' is without a pixel", "train/train_0.png"),
    ),
    "zero-based under a one-based table": Case(
        lambda r: (r / "classes.yaml").write_text(ONE_BASED), "labels_zero_based",
        ("'tree' is without a pixel", "table: {0: road, 1: sky, 2: tree, 255: ignore}"),
    ),
    "zero-based with 255, one-based table": Case(
        lambda r: (with_ignore(r), (r / "classes.yaml").write_text(ONE_BASED)), "labels_zero_based",
        ("255 marks no label", "3 never occurs", "table: {0: road, 1: sky, 2: tree, 255: ignore}"),
    ),
    "zero-based with 255, one-based table that knows 255": Case(
        lambda r: (with_ignore(r), (r / "classes.yaml").write_text(ONE_BASED.replace("tree}", "tree, 255: ignore}"))),
        "labels_zero_based", ("'tree' is without a pixel", "table: {0: road, 1: sky, 2: tree, 255: ignore}"),
    ),
    "zero-based, table without 0": Case(
        lambda r: (r / "classes.yaml").write_text("{names: [road, sky, tree], table: {1: road, 2: sky, 3: tree}}\n"),
        "labels_zero_based", ("Values found: 0..2", "table: {0: road"),
    ),
    "black and white": Case(
        lambda r: (look_up(0, 255, 0)(r), (r / "classes.yaml").write_text("names: [road, sky]\n")), "labels_0_255",
        ("0 and 255", "'sky' never occurs", "train/train_0.png", "table: {0: road, 255: sky}"),
    ),
    "stretched to 255, rounded": Case(
        look_up(0, 128, 255), "labels_0_255", ("train/train_0.png", "table: {0: road, 128: sky, 255: tree}"),
    ),
    "stretched to 255, cut": Case(
        look_up(0, 127, 254), "labels_0_255", ("train/train_0.png", "table: {0: road, 127: sky, 254: tree}"),
    ),
    "stretched below 255, which is no label": Case(
        lambda r: (with_ignore(r), change_labels(r, lambda m: np.where(m == 255, m, m % 3 * 85).astype(np.uint8))),
        "labels_0_255", ("and 255 for no label", "table: {0: road, 85: sky, 170: tree, 255: ignore}"),
    ),
    "stretched to 16 bits": Case(
        look_up(0, 257, 514, dtype=np.uint16), "labels_16_bit",
        ("train/train_0.png", "table: {0: road, 257: sky, 514: tree"),
    ),
    "16-bit ignore value": Case(
        look_up(0, 1, 65535, dtype=np.uint16), "ignore_value", ("train/train_0.png", "65535: ignore"),
    ),
    "255 not in the table": Case(
        lambda r: (put_value(r, 255), (r / "classes.yaml").write_text(
            "{names: [road, sky, tree], table: {0: road, 1: sky, 2: tree}}\n")),
        "ignore_value", (TRAIN_1, "255", "table: {0: road, 1: sky, 2: tree, 255: ignore}"),
    ),
    "interpolated masks": Case(blur, "labels_interpolated", ("train/train_0.png", "nearest neighbour")),
    "grey photos as masks": Case(grey_photos, "labels_foreign", ("train/train_0.png", "photos in grey")),
    "image without a label": Case(lambda r: label(r).unlink(), "image_alone", (f"images/{TRAIN_1}",)),
    "label without an image": Case(lambda r: image(r).unlink(), "label_alone", (f"labels/{TRAIN_1}",)),
    "labels with an ending": Case(
        lambda r: [rename(file, f"{file.stem}_mask.png") for file in labels(r)], "label_alone",
        ("train_0_mask.png", "endings such as _mask"),
    ),
    "names in other letters": Case(
        lambda r: [rename(file, f"{file.stem.upper()}.png") for file in labels(r)], "image_alone",
        ("train_0.png", "upper and lower case"),
    ),
    "names in another Unicode form": Case(
        lambda r: (rename(image(r), "stra\u00dfe_\u00e9.png"), rename(label(r), "stra\u00dfe_e\u0301.png")),
        "image_alone", ("stra\u00dfe_\u00e9.png", "Unicode form"),
    ),
    "two images of one name": Case(
        lambda r: Image.open(image(r)).save(image(r).with_suffix(".bmp")), "same_name", ("train_1.bmp", "train_1.png"),
    ),
    "no folder of labels": Case(
        lambda r: shutil.rmtree(r / "labels" / "val"), "folder_missing", ("labels/val", "splits that exist: train"),
    ),
    "empty split": Case(
        lambda r: [file.unlink() for file in r.rglob("val/*.png")], "split_empty", ("split val", "images/val"),
    ),
    "same image in two splits": Case(
        lambda r: shutil.copy(image(r, 2), image(r, 0, "val")), "image_in_two_splits", ("train_2 = val_0",),
    ),
    "same pixels in two formats": Case(reencode, "image_in_two_splits", ("train_2 = val_0",)),
    "class missing in training": Case(lambda r: only(r, "train", (0, 1), 0), "class_absent", ("split train", "tree")),
    "class missing in validation": Case(lambda r: only(r, "val", (0, 2), 2), "class_absent", ("split val", "sky")),
    "class hardly there": Case(speck, "class_rare", ("tree 0.00111%", "road")),
    "nothing labelled": Case(lambda r: only(r, "val", (), 255), "split_unlabelled", ("split val", "val_0.png")),
    "masks without a label": Case(
        lambda r: Image.fromarray(np.full(SIZE, 255, np.uint8)).save(label(r)), "masks_unlabelled", (TRAIN_1,),
    ),
    "no classes.yaml": Case(lambda r: (r / "classes.yaml").unlink(), "classes_unreadable", ("classes.yaml", "names:")),
    "classes.yaml with a wrong key": Case(
        lambda r: (r / "classes.yaml").write_text("{names: [road], colours: []}\n"), "classes_unreadable",
        ("'colours'",),
    ),
}  # fmt: skip
