"""Tensors of a PyTorch `.pth` file, without PyTorch: the zip format of `torch.save` since PyTorch 1.6.

The file is a zip archive without compression: ARCHIVE/data.pkl, a pickle that refers to storages by key, and
ARCHIVE/data/KEY, the numbers of each storage. A pickle may name any function of Python to be called. Only tensors and
plain containers are built here; whatever else a file names is refused before anything of it is looked up.
"""

import io
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np

# Storage classes by name: the type of their numbers. NumPy has no bfloat16: upper halves of float32.
STORAGES = {
    "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": "u2", "LongStorage": "i8",
    "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip
BFLOAT16 = "BFloat16Storage"
SAVE_AGAIN = "open it in PyTorch once and save it anew: torch.save(torch.load(OLD, map_location='cpu'), NEW)"
BEFORE_ZIP = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # a number with which pickles of 2017 to 2020 begin


class Allowed:
    """Stands for a function that a pickle may call; made anew at each mention, so that nothing a file does lasts."""

    __slots__ = ("action",)

    def __init__(self, action) -> None:
        self.action = action

    def __call__(self, *args):
        return self.action(*args)


class TensorUnpickler(pickle.Unpickler):
    """Builds arrays from the storages of an archive, and plain containers; refuses everything else by name."""

    def __init__(self, file: io.BytesIO, read_member, order: str) -> None:
        super().__init__(file)
        self.read_member, self.order = read_member, order
        self.storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str):
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return Allowed(rebuild_tensor)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return Allowed(rebuild_parameter)
        if (module, name) == ("torch", "Size"):
            return tuple
        if module == "torch" and name in STORAGES:
            return name
        raise pickle.UnpicklingError(
            f"it wants to use {module}.{name}, which is neither a tensor nor a plain container, and was not looked up; "
            "save the weights alone: torch.save(model.state_dict(), FILE)"
        )

    def persistent_load(self, pid) -> np.ndarray:
        """The numbers of ("storage", type, key, device, count), one-dimensional."""
        kind, storage, key, _, count = pid
        if kind != "storage" or storage not in STORAGES or not isinstance(key, str):
            raise pickle.UnpicklingError(f"it refers to {pid!r}, which is no storage of numbers")
        if key not in self.storages:
            kind = np.dtype(STORAGES[storage]).newbyteorder(self.order)
            values = np.frombuffer(self.read_member(f"data/{key}"), kind)
            if storage == BFLOAT16:
                values = (values.astype(np.uint32) << 16).view(np.float32)
            self.storages[key] = values
        if self.storages[key].size < count:
            raise pickle.UnpicklingError(f"storage {key} has {self.storages[key].size} numbers, should have {count}")
        return self.storages[key]


def rebuild_tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_) -> np.ndarray:
    """The tensor that lies in a storage at an offset, with strides in numbers; a copy."""
    if not isinstance(storage, np.ndarray) or len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise pickle.UnpicklingError(f"a tensor of size {size}, stride {stride}, offset {offset} is impossible")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    empty = 0 in size
    if not empty and (last >= storage.size or int(np.prod([int(n) for n in size], dtype=object)) > storage.size):
        raise pickle.UnpicklingError(f"a tensor of size {size} reaches beyond its {storage.size} numbers")
    if empty:
        return np.zeros(size, storage.dtype)
    view = np.lib.stride_tricks.as_strided(
        storage[offset:], size, [step * storage.itemsize for step in stride], writeable=False
    )
    return np.array(view, storage.dtype.newbyteorder("="))


def rebuild_parameter(tensor: np.ndarray, *_) -> np.ndarray:
    """A parameter is its tensor."""
    return tensor


def read_pth(path: str | Path, key: str | None = None) -> dict[str, np.ndarray]:
    """Tensors by name of a .pth file: its state dict, which lies at the top or one level below.

    key: which entry of the top holds them, where several do. Raises ValueError where the file is of the older formats,
    damaged, wants anything but tensors and containers, or holds no or several state dicts.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            tree = unpickle(archive)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: {older_format(Path(path)) or f'not a readable .pth file ({error})'}") from error
    except (pickle.UnpicklingError, KeyError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a readable .pth file: {error}") from error
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError, MemoryError, RuntimeError) as error:
        raise ValueError(f"{path}: not a readable .pth file: its pickle is damaged ({error})") from error
    return state_dict(path, tree, key)


def unpickle(archive: zipfile.ZipFile):
    """What data.pkl of an archive describes."""
    packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
    if packed:  # torch.save never packs, and a packed file may be larger than memory
        raise pickle.UnpicklingError(f"{packed[0]} is compressed, which torch.save never does")
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise pickle.UnpicklingError(f"it holds {len(pickles)} files data.pkl, not 1: another kind of zip file")
    folder = pickles[0].removesuffix("data.pkl")
    names = set(archive.namelist())
    order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in names else b"little"
    if order not in (b"little", b"big"):
        raise pickle.UnpicklingError(f"its byte order is {order!r}, not little or big")
    file = io.BytesIO(archive.read(pickles[0]))
    return TensorUnpickler(file, lambda name: archive.read(folder + name), "<" if order == b"little" else ">").load()


def older_format(path: Path) -> str:
    """What to do with a file of PyTorch before 1.6; empty where it is none."""
    with path.open("rb") as file:
        start = file.read(2 + len(BEFORE_ZIP))
    if start[2:] == BEFORE_ZIP:
        return f"a .pth file of PyTorch before 1.6 (one pickle), which is not read here; {SAVE_AGAIN}"
    if tarfile.is_tarfile(path):
        return f"a .pth file of the first PyTorch versions (tar), which is not read here; {SAVE_AGAIN}"
    return ""


def state_dict(path: str | Path, tree, key: str | None) -> dict[str, np.ndarray]:
    """The mapping of names to tensors at the top or one level below."""
    if key is None and is_state(tree):
        return dict(tree)
    entries = tree.items() if isinstance(tree, dict) else ()
    found = {name: value for name, value in entries if is_state(value)}
    if key is None and len(found) == 1:
        return dict(*found.values())
    if key in found:
        return dict(found[key])
    what = ", ".join(map(str, found)) or "none"
    asked = f"no entry {key!r} of tensors by name" if key else f"{len(found)} entries of tensors by name instead of one"
    raise ValueError(f"{path}: {asked}; there are: {what}" + ("; name one with --key" if found else ""))


def is_state(value) -> bool:
    """Whether a value is a mapping of names to tensors, not empty."""
    return isinstance(value, dict) and bool(value) and all(
        isinstance(name, str) and isinstance(array, np.ndarray) for name, array in value.items()
    )  # fmt: skip
