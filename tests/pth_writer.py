"""Writes .pth files by hand, opcode by opcode: what torch.save writes, and what an attacker might."""

import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np

STORAGES = {"f8": "Double", "f4": "Float", "f2": "Half", "i8": "Long", "i4": "Int", "u1": "Byte", "b1": "Bool"}


class Raw(bytes):
    """Opcodes that stand for themselves."""


class Tensors:
    """Turns values into opcodes and collects the storages that they refer to."""

    def __init__(self) -> None:
        self.storages: list[bytes] = []

    def emit(self, value) -> bytes:
        if isinstance(value, Raw):
            return bytes(value)
        if isinstance(value, np.ndarray):
            return self.tensor(value)
        if isinstance(value, OrderedDict):
            return b"ccollections\nOrderedDict\n)R" + self.items(value)
        if isinstance(value, dict):
            return b"}" + self.items(value)
        if isinstance(value, tuple):
            return b"(" + b"".join(map(self.emit, value)) + b"t"
        if isinstance(value, bool):
            return b"\x88" if value else b"\x89"
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        text = value.encode()
        return b"X" + struct.pack("<I", len(text)) + text

    def items(self, value: dict) -> bytes:
        return b"(" + b"".join(self.emit(x) for item in value.items() for x in item) + b"u"

    def tensor(self, array: np.ndarray) -> bytes:
        """A tensor in a storage of its own; Fortran order becomes strides, as of a transposed tensor."""
        order = "F" if array.flags.f_contiguous and array.ndim > 1 else "C"
        stride = tuple(step // array.itemsize for step in array.strides)
        self.storages.append(array.tobytes(order))
        return self.rebuild(array.dtype.str[1:], str(len(self.storages) - 1), array.size, 0, array.shape, stride)

    def rebuild(self, kind: str, key: str, count: int, offset: int, size: tuple, stride: tuple) -> bytes:
        storage = Raw(f"ctorch\n{STORAGES[kind]}Storage\n".encode())
        reference = self.emit(("storage", storage, key, "cpu", count)) + b"Q"
        arguments = (Raw(reference), offset, size, stride, False, OrderedDict())
        return b"ctorch._utils\n_rebuild_tensor_v2\n" + self.emit(arguments) + b"R"


def write_pth(path: Path, value, storages: list[bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> Path:
    """Writes a value as torch.save does; with Raw values, storages are those given."""
    tensors = Tensors()
    body = tensors.emit(value)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("weights/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr("weights/byteorder", b"little")
        for key, content in enumerate(tensors.storages if storages is None else storages):
            archive.writestr(f"weights/data/{key}", content)
        archive.writestr("weights/version", b"3\n")
    return path
