"""Event files for TensorBoard, written without it.

A file is a row of records: length (8 bytes), its checksum (4), the event, its checksum (4), all little-endian; the
checksum is CRC-32C, turned right by 15 bits plus a constant (TFRecord format). An event is a protocol buffer of
tensorflow/core/util/event.proto; the few fields that are used here are in `encode_event`.
"""

import importlib.util
import os
import socket
import struct
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

PACKAGES = ("tensorboard", "tensorboardX")
VERSION = b"brain.Event:2"
POLYNOMIAL = 0x82F63B78  # Castagnoli's, reflected
MASK = 0xA282EAD8
VARINT, DOUBLE, BYTES, FLOAT = 0, 1, 2, 5  # wire types of protocol buffers


def wanted() -> bool:
    """Whether a package is installed that reads or writes such files: then somebody will look at them."""
    found = [importlib.util.find_spec(name) for name in PACKAGES]
    return any(spec is not None and spec.origin is not None for spec in found)  # no origin: a folder of that name


class EventFile:
    """The scalars of one start of a run.

    Args:
        folder: of all the run's event files; made if need be.
        first_step: what earlier starts wrote for this step and later ones no longer counts.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        began = time.time()
        self.path = folder / f"events.out.tfevents.{began:.6f}.{socket.gethostname()}.{os.getpid()}"
        self._append(encode_event(began, version=VERSION))
        self._append(encode_event(began, step=first_step, starts=True))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds values of a step, by tag; they are on their way to the disk when this returns."""
        self._append(encode_event(time.time(), step=step, scalars=scalars))

    def _append(self, event: bytes) -> None:
        length = struct.pack("<Q", len(event))
        try:
            with self.path.open("ab") as file:
                file.write(length + checksum(length) + event + checksum(event))
        except OSError as error:  # of a full disk: without the name
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def encode_event(
    wall_time: float, *, step: int = 0, version: bytes = b"", starts: bool = False,
    scalars: Mapping[str, float] | None = None,
) -> bytes:  # fmt: skip
    """Event {wall_time = 1, step = 2, file_version = 3, summary = 5, session_log = 7}.

    Summary {repeated value = 1 {tag = 1, simple_value = 2}}, SessionLog {status = 1: START is 1}.
    """
    parts = [key(1, DOUBLE) + struct.pack("<d", wall_time), key(2, VARINT) + varint(step)]
    if version:
        parts.append(block(3, version))
    if starts:
        parts.append(block(7, key(1, VARINT) + varint(1)))
    if scalars is not None:
        values = [
            block(1, block(1, tag.encode()) + key(2, FLOAT) + struct.pack("<f", value))
            for tag, value in scalars.items()
        ]
        parts.append(block(5, b"".join(values)))
    return b"".join(parts)


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last byte have the eighth bit set."""
    parts = []
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def key(field: int, wire_type: int) -> bytes:
    """What stands before a field's value."""
    return varint(field << 3 | wire_type)


def block(field: int, content: bytes) -> bytes:
    """A field of text or of an inner message."""
    return key(field, BYTES) + varint(len(content)) + content


def checksum(content: bytes) -> bytes:
    """The record format's own form of CRC-32C."""
    crc = crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF)


def crc32c(content: bytes) -> int:
    """CRC-32 with Castagnoli's polynomial (RFC 3720, appendix B.4)."""
    crc, table = 0xFFFFFFFF, crc_table()
    for byte in content:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


@cache
def crc_table() -> tuple[int, ...]:
    """What the eight bits of a byte do to the sum."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)
