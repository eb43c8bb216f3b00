"""Named arrays as bytes of a .safetensors file, and back.

Bytes, not a file: they are hashed on their way to the disk, a full disk is an ordinary error, and equal arrays make
equal files. Format: 8 bytes with the header's length, a JSON header with type, shape and place of each array, arrays.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
ALIGNMENT = 8  # bytes; of the first array, and as wide types come first, of every array to its own type


def tensor_blocks(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> list[bytes | np.ndarray]:
    """The content of a .safetensors file, as blocks of bytes one after the other; arrays are not copied.

    Raises ValueError for an array of a type that the format has no name for.
    """
    header: dict = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    names, start = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)), 0
    for name in names:
        array = tensors[name]
        if array.dtype.name not in TYPES:
            raise ValueError(f"{name} is {array.dtype.name}; a .safetensors file takes {', '.join(TYPES)}")
        end = start + array.nbytes
        header[name] = {"dtype": TYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    arrays = [np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8) for name in names]
    return [len(text).to_bytes(8, "little"), text, *arrays]


def read_safetensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a .safetensors file; ValueError where it is none or is cut off."""
    metadata = read_safetensors_metadata(path)
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118


def read_safetensors_metadata(path: str | Path) -> dict[str, str]:
    """Metadata of a .safetensors file, without its arrays; ValueError where it is none or is cut off."""
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable .safetensors file ({error}); write it again") from error
