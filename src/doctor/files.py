"""What the bytes of an image file tell without decoding it: cut off, altered, turned."""

import io
import struct
import zlib

from PIL import Image

from src.data.reading import PILLOW_ERRORS, is_cut_off

PNG_START = b"\x89PNG\r\n\x1a\n"
EMPTY, TRUNCATED, CORRUPT, UNREADABLE = "empty", "truncated", "corrupt", "unreadable"
EXIF_ORIENTATION = 0x0112
UPRIGHT = 1
EXIF_REACH = 65536  # bytes from the start in which the EXIF block begins, if there is one


def damage(data: bytes) -> tuple[str, str] | None:
    """(kind, what is wrong) of a file's bytes, None for none that is known; kind: EMPTY, TRUNCATED or CORRUPT."""
    if not data:
        return EMPTY, "has no bytes"
    if data.startswith(PNG_START):
        return png_damage(data)
    if is_cut_off(data):
        return TRUNCATED, "is a JPEG that is cut off: it has no end marker"
    return None


def png_damage(data: bytes) -> tuple[str, str] | None:
    """Walks the chunks of a PNG (length, kind, content, CRC-32 of kind and content) to the end chunk."""
    place = len(PNG_START)
    while True:
        if place + 12 > len(data):
            return TRUNCATED, f"is a PNG that is cut off after {len(data)} bytes: it has no end chunk"
        (length,) = struct.unpack_from(">I", data, place)
        kind, end = data[place + 4 : place + 8], place + 12 + length
        if end > len(data):
            return TRUNCATED, f"is a PNG that is cut off after {len(data)} bytes, within its chunk {kind!r}"
        (wanted,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(memoryview(data)[place + 4 : end - 4]) != wanted:
            return CORRUPT, f"is a damaged PNG: the checksum of its chunk {kind!r} at byte {place} is wrong"
        if kind == b"IEND":
            return None
        place = end


def orientation(data: bytes) -> int:
    """The EXIF orientation: 1 upright, 2 to 4 mirrored or upside down, 5 to 8 with sides exchanged."""
    if b"Exif" not in data[:EXIF_REACH]:
        return UPRIGHT
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.getexif().get(EXIF_ORIENTATION, UPRIGHT)
    except PILLOW_ERRORS:
        return UPRIGHT
