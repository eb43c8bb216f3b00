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
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# Storage classes by name: the type of their numbers. NumPy has no bfloat16: upper halves of float32.
STORAGES = {
    "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": "u2", "LongStorage": "i8",
    "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip
BFLOAT16 = "BFloat16Storage"
DEPTH = 2  # levels below the top at which tensors by name are looked for
SHOWN = 5  # names in a text
WEIGHTS_ALONE = "save the weights alone: torch.save(model.state_dict(), FILE)"
SAVE_AGAIN = (
    "open it in PyTorch once and save it anew: torch.save(torch.load(OLD, map_location='cpu', weights_only=True), NEW)"
)
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
            f"{WEIGHTS_ALONE}"
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

    key: which entry of the top holds them, where several do; `a.b` is entry b of entry a. Raises ValueError where the
    file is of the older formats, damaged, wants anything but tensors and containers, or holds no state dict or several.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            tree = unpickle(archive)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: {older_format(Path(path)) or no_archive(Path(path), error)}") from error
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


def no_archive(path: Path, error: zipfile.BadZipFile) -> str:
    """What a file is that is no sound zip archive, and what to do."""
    with path.open("rb") as file:
        begins_well = file.read(2) == b"PK"
    if begins_well:
        return f"not a readable .pth file: cut off or damaged ({error}); download, copy or save it again"
    return (
        f"not a readable .pth file: not the zip archive that torch.save has written since PyTorch 1.6 ({error}); "
        f"download it again, or {SAVE_AGAIN}"
    )


def state_dict(path: str | Path, tree, key: str | None) -> dict[str, np.ndarray]:
    """The mapping of names to tensors that `key` names; without one, the only one at the top or one level below."""
    if isinstance(tree, dict) and is_state(tree.get(key)):
        return dict(tree[key])
    found = {place: value for place, value in mappings(tree) if is_state(value)}
    near = [place for place in found if len(place) <= 1]
    names = {".".join(place): place for place in found}
    if key is None and len(near) == 1:
        return dict(found[near[0]])
    if key in names:
        return dict(found[names[key]])
    if key is not None:
        asked = f"no entry {key!r} of tensors by name"
    else:
        asked = f"{len(near)} entries of tensors by name instead of one"
        asked += " at the top and one level below" if found and not near else ""
    there = f"there are: {', '.join(names)}; name one with --key" if found else "there are: none"
    raise ValueError("; ".join([f"{path}: {asked}", there, *(mixtures(tree) or ([] if found else [content(tree)]))]))


def mappings(tree) -> Iterator[tuple[tuple[str, ...], dict]]:
    """(keys that lead there, mapping) of the top and of what lies up to DEPTH levels below, each once."""
    queue, seen = [((), tree)], set()
    for place, value in queue:  # which grows
        if not isinstance(value, dict) or id(value) in seen:
            continue
        seen.add(id(value))  # a pickle may nest a mapping in itself, and a thousand times over
        yield place, value
        if len(place) < DEPTH:
            queue += [((*place, str(name)), child) for name, child in value.items() if isinstance(child, dict)]


def mixtures(tree) -> list[str]:
    """What is said of mappings in which something else lies beside tensors."""
    told = []
    for place, value in mappings(tree):
        others = {name: child for name, child in value.items() if not isinstance(child, np.ndarray)}
        if others and len(others) < len(value):
            count = len(value) - len(others)
            told.append(
                f"{'.'.join(place) or 'the top'} holds {count} tensors and beside them what is none: {kinds(others)}. "
                "Save the tensors alone: "
                "torch.save({name: x for name, x in STATE.items() if torch.is_tensor(x)}, FILE)"
            )
    return told[:SHOWN]


def content(tree) -> str:
    """What a file without tensors by name holds instead."""
    what = f"entries {kinds(tree)}" if isinstance(tree, dict) and tree else f"a value of type {type(tree).__name__}"
    return f"the file holds {what}; {WEIGHTS_ALONE}"


def kinds(entries: dict) -> str:
    """`epoch (int), meta (dict) and 3 more`."""
    listed = ", ".join(f"{name} ({type(value).__name__})" for name, value in list(entries.items())[:SHOWN])
    return listed + (f" and {len(entries) - SHOWN} more" if len(entries) > SHOWN else "")


def is_state(value) -> bool:
    """Whether a value is a mapping of names to tensors, not empty."""
    return isinstance(value, dict) and bool(value) and all(
        isinstance(name, str) and isinstance(array, np.ndarray) for name, array in value.items()
    )  # fmt: skip
