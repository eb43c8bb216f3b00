"""Photos and masks: every kind that is read, and what each kind of bad file says."""

import io
import re
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from src.data.reading import FileItem, read_image, read_item, read_mask, to_class_ids

PHOTO = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
MASK = np.array([[0, 7, 255, 0]] * 6, np.uint8).repeat(2, axis=1)  # (6, 8)
TABLE = {0: 0, 7: 1, 255: 255}


def save(path: Path, array: np.ndarray, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def raises(kind: type[Exception], *parts: str):
    """The message holds all parts in this order."""
    return pytest.raises(kind, match="(?s)" + ".*".join(map(re.escape, parts)))


# --- photos ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["grey", "alpha", "16 bit", "palette"])
def test_every_kind_of_photo_becomes_rgb(tmp_path, kind):
    path = tmp_path / "photo.png"
    grey = PHOTO[..., 0]
    if kind == "grey":
        save(path, grey)
    elif kind == "alpha":
        save(path, np.dstack([PHOTO, grey]))
    elif kind == "16 bit":
        cv2.imwrite(str(path), PHOTO[..., ::-1].astype(np.uint16) * 256 + 99)
    else:
        Image.fromarray(grey % 4).convert("P").save(path)  # the default palette is grey
    expected = {"grey": np.dstack([grey] * 3), "palette": np.dstack([grey % 4] * 3)}.get(kind, PHOTO)
    np.testing.assert_array_equal(read_image(path), expected)


@pytest.mark.parametrize("tail", [0.5, 0.9, -2])
def test_truncated_jpeg_names_the_file(tmp_path, tail):
    """OpenCV alone would return a picture with a grey rest."""
    path = save(tmp_path / "photo.jpg", PHOTO.repeat(20, 0).repeat(20, 1), quality=90)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * tail) if tail > 0 else tail])
    assert cv2.imread(str(path)) is not None
    with raises(ValueError, "truncated JPEG", str(path)):
        read_image(path)


def test_a_jpeg_whose_end_is_zeros_is_refused(tmp_path):
    """As a copy ends that reserved the room of the whole file before; Pillow takes it for a picture."""
    path = save(tmp_path / "photo.jpg", PHOTO.repeat(20, 0).repeat(20, 1), quality=90)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    with raises(ValueError, "truncated JPEG", str(path)):
        read_image(path)


def test_a_thumbnail_does_not_hide_a_truncation(tmp_path):
    """An end marker in the middle of the file is not the end of the picture."""
    path = save(tmp_path / "photo.jpg", PHOTO.repeat(20, 0).repeat(20, 1), exif=b"Exif\0\0" + b"\xff\xd9" * 4)
    assert read_image(path).shape == (120, 160, 3)
    path.write_bytes(path.read_bytes()[:-200])
    with raises(ValueError, "truncated JPEG"):
        read_image(path)


def test_bytes_after_the_end_of_a_jpeg_are_harmless(tmp_path):
    path = save(tmp_path / "photo.jpg", PHOTO)
    expected = read_image(path)
    path.write_bytes(path.read_bytes() + b"camera notes")
    np.testing.assert_array_equal(read_image(path), expected)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_truncated_png_and_other_bytes(tmp_path, share):
    buffer = io.BytesIO()
    Image.fromarray(PHOTO.repeat(40, 0).repeat(40, 1) ^ np.arange(320, dtype=np.uint8)[:, None]).save(buffer, "PNG")
    content = buffer.getvalue()
    path = tmp_path / "photo.png"
    path.write_bytes(content[: int(len(content) * share)])
    with raises(ValueError, "cannot decode image", "photo.png"):
        read_image(path)
    path.write_bytes(b"this is no picture")
    with raises(ValueError, "photo.png", "18 bytes"):
        read_image(path)


# --- masks ----------------------------------------------------------------------------------------------------------


def png(depth: int, rows: list[bytes], width: int) -> bytes:
    """A grey PNG of `depth` bits, written from the format's description."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, len(rows), depth, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("depth", "row", "expected"),
    [
        (1, b"\x50", [0, 1, 0, 1]),
        (2, b"\x1b", [0, 1, 2, 3]),
        (4, b"\x0f\x12", [0, 15, 1, 2]),
        (8, b"\x00\x07\x0b\xff", [0, 7, 11, 255]),
        (16, b"\x00\x00\x01\x01\x00\x07\xff\xff", [0, 257, 7, 65535]),
    ],
)
def test_masks_keep_their_indices_at_every_depth(tmp_path, depth, row, expected):
    path = tmp_path / "mask.png"
    path.write_bytes(png(depth, [row], 4))
    np.testing.assert_array_equal(read_mask(path), [expected])


def test_palette_and_32_bit_masks_keep_their_indices(tmp_path):
    mask = Image.fromarray(MASK, mode="P")
    mask.putpalette([255 - k // 3 for k in range(768)])  # index 7 is shown as (248, 248, 248)
    mask.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "palette.png"), MASK)
    save(tmp_path / "wide.tif", MASK.astype(np.int32) + 70000)
    np.testing.assert_array_equal(read_mask(tmp_path / "wide.tif"), MASK.astype(np.int32) + 70000)


@pytest.mark.parametrize(
    ("name", "mode", "parts"),
    [
        ("c.png", "RGB", ("colour mode 'RGB'", "indices", "PNG with one channel")),
        ("c.png", "RGBA", ("colour mode 'RGBA'", "indices")),
        ("c.jpg", None, ("is a JPEG", "PNG with one channel")),
    ],
)
def test_colour_and_jpeg_masks_are_refused_with_the_remedy(tmp_path, name, mode, parts):
    path = save(tmp_path / name, MASK, mode)
    with raises(ValueError, str(path), *parts):
        read_mask(path)


def test_damaged_mask_names_the_file(tmp_path):
    path = save(tmp_path / "mask.png", np.random.default_rng(0).integers(0, 9, (99, 99), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:700])
    with raises(ValueError, "cannot read label file", "mask.png"):
        read_mask(path)


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_mask_with_a_flipped_bit_is_no_mask(tmp_path, place):
    """Its pixels may look like others; the checksum tells."""
    path = save(tmp_path / "mask.png", np.random.default_rng(0).integers(0, 9, (99, 99), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 4
    path.write_bytes(content)
    with raises(ValueError, "cannot read label file", "mask.png", "damaged"):
        read_mask(path)


def test_a_transparent_grey_is_a_value_like_others(tmp_path):
    save(tmp_path / "mask.png", MASK, transparency=7)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), MASK)


def test_values_have_the_type_of_the_file(tmp_path):
    assert read_mask(save(tmp_path / "8.png", MASK)).dtype == np.uint8
    assert read_mask(save(tmp_path / "1.png", MASK > 0)).dtype == np.uint8
    assert read_mask(save(tmp_path / "16.png", MASK.astype(np.uint16))).dtype == np.int32


@pytest.mark.parametrize("table", [TABLE, {value: value for value in range(256)}, {0: 4, 7: 254, 255: 3, 999: 0}])
def test_bytes_are_looked_up_as_integers_are(table):
    values = np.random.default_rng(0).choice([value for value in table if value < 256], (9, 70)).astype(np.uint8)
    expected = np.vectorize(table.get)(values)
    for kind in (np.uint8, np.int32, np.uint16):
        label = to_class_ids(values.astype(kind), table, "mask")
        np.testing.assert_array_equal(label, expected)
        assert label.dtype == np.uint8


def test_value_outside_the_table_names_file_values_and_range(tmp_path):
    mask = MASK.copy()
    mask[0, :3], mask[1, 0] = 9, 200
    item = FileItem("c", save(tmp_path / "c.jpg", PHOTO), save(tmp_path / "c.png", mask))
    with raises(ValueError, str(item.label), "9 (3 px), 200 (1 px)", "allowed: 0, 7, 255"):
        read_item(item, TABLE)


def test_values_never_wrap_around():
    """256 is not 0, 511 not 255 and -1 not 255; the largest and smallest integers are just values outside."""
    table = {0: 0, 1: 1, 255: 255}
    for value in (256, 257, 511, -1, -2, 2**31 - 1, -(2**31)):
        with raises(ValueError, f"{value} (1 px)", "allowed: 0..1, 255"):
            to_class_ids(np.array([[0, value]], np.int32), table, "mask")
    label = to_class_ids(np.array([[300, 65535, 0]], np.int32), {300: 0, 65535: 255, 0: 1}, "mask")
    np.testing.assert_array_equal(label, [[0, 255, 1]])
    assert label.dtype == np.uint8


def test_sizes_that_differ_name_both_files_and_sizes(tmp_path):
    item = FileItem("c", save(tmp_path / "c.jpg", PHOTO), save(tmp_path / "c.png", MASK[:5]))
    with raises(ValueError, "c.jpg is 6 x 8", "c.png is 5 x 8"):
        read_item(item, TABLE)
