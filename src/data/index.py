"""Large folders of images and labels: listed once, kept as an index on disk, mapped into memory by every later start.

The index holds the names, not the files. It is out of date once a folder below either root was changed: adding,
removing and renaming a file changes the time of its folder, so asking for the times of the folders is enough, and none
of the files is looked at. A folder that changed within SETTLE before it was listed might have changed again without a
new time; such an index serves the run that made it and is made anew by the next. A checksum tells whether the index
itself is what was written.

Letters: N pairs.
"""

import hashlib
import json
import os
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.data.listing import SUFFIXES, by_name, check_pairs, scan
from src.data.reading import FileItem
from src.log import get_console

INDEX_FROM = 50_000  # pairs; fewer are listed in well under a second, and leave nothing behind on the disk
SETTLE = 2_000_000_000  # ns: the coarsest time stamps of file systems in use
FORMAT = 2
CACHE_VARIABLE = "ECENET_CACHE"
TELL_EVERY = 5.0  # seconds


@dataclass(frozen=True)
class Names:
    """N names and, for both of their files, which of `tails` follows.

    text: all names in UTF-8, one after the other, (bytes,) uint8; ends: where each ends, (N,) int64; image_tails,
    label_tails: (N,) uint8.
    """

    tails: tuple[str, ...]
    text: np.ndarray
    ends: np.ndarray
    image_tails: np.ndarray
    label_tails: np.ndarray

    def __getitem__(self, i: int) -> str:
        return bytes(self.text[self.ends[i - 1] if i else 0 : self.ends[i]]).decode()


class FilePairs(Sequence):
    """Items that are made when they are asked for; a slice is of the same kind.

    positions: which of the names, in which order; None: all of them.
    """

    def __init__(self, images: Path, labels: Path, names: Names, positions: Sequence[int] | None = None) -> None:
        self.images, self.labels, self.names = images, labels, names
        self.positions = range(len(names.ends)) if positions is None else positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: int | slice) -> "FileItem | FilePairs":
        if isinstance(i, slice):
            return FilePairs(self.images, self.labels, self.names, self.positions[i])
        k = int(self.positions[i])
        name, tails = self.names[k], self.names.tails
        image, label = tails[self.names.image_tails[k]], tails[self.names.label_tails[k]]
        return FileItem(name, self.images / (name + image), self.labels / (name + label))

    def take(self, positions: Sequence[int]) -> "FilePairs":
        """The items at some positions, in that order."""
        return FilePairs(self.images, self.labels, self.names, np.array(self.positions)[np.array(positions)])


def pair_folders(
    images: Path, labels: Path, split: str, image_tails: Sequence[str] = SUFFIXES, label_tails: Sequence[str] = SUFFIXES
) -> Sequence[FileItem]:
    """The pairs of two folders, sorted by name: a name is the path below the folder without one of the tails.

    From INDEX_FROM pairs on, an index is kept in `cache_folder()`, and taken instead of listing while the folders are
    unchanged. Raises ValueError for an empty split, two files of one name and files without partner.
    """
    key, file = index_place(images, labels, image_tails, label_tails)
    names = read_index(file, key)
    if names is None:
        start = time.time_ns()
        stamps: dict[str, int] = {}
        found = [
            by_name(_told(scan(folder, tails, stamps), folder), folder)
            for folder, tails in ((images, image_tails), (labels, label_tails))
        ]
        check_pairs(*found, (images, labels), split, dict.fromkeys((*image_tails, *label_tails)))
        names = pack(*found)
        if len(names.ends) < INDEX_FROM:
            return list(FilePairs(images, labels, names))
        seconds = (time.time_ns() - start) / 1e9
        kept = write_index(file, key, names, stamps, start)
        get_console().print(f"listed {len(names.ends):,} pairs of {images} in {seconds:.1f} s; {kept}", markup=False)
    return FilePairs(images, labels, names)


def index_place(
    images: Path, labels: Path, image_tails: Sequence[str] = SUFFIXES, label_tails: Sequence[str] = SUFFIXES
) -> tuple[str, Path]:
    """What an index is of, and its file."""
    key = json.dumps([FORMAT, str(images.absolute()), str(labels.absolute()), list(image_tails), list(label_tails)])
    return key, cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.index"


def cache_folder() -> Path:
    """Where indexes are kept, never beside the data: those may be read-only."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "ecenet"
    try:
        return Path.home() / ".cache" / "ecenet"
    except RuntimeError:  # a container's user without a home
        return Path(tempfile.gettempdir()) / f"ecenet-{os.getuid()}"


def pack(images: dict[str, str], labels: dict[str, str]) -> Names:
    """Names of two dicts with the same keys, name -> tail, sorted."""
    ordered = sorted(images)
    codes: dict[str, int] = {}
    tails = [[codes.setdefault(found[name], len(codes)) for name in ordered] for found in (images, labels)]
    if len(codes) > np.iinfo(np.uint8).max:
        raise ValueError(f"{len(codes)} ways to write the end of a file name; at most 255 fit, rename the files")
    encoded = [name.encode() for name in ordered]
    ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
    text = np.frombuffer(b"".join(encoded), np.uint8)
    return Names(tuple(codes), text, ends, *(np.array(codes_of, np.uint8) for codes_of in tails))


def write_index(file: Path, key: str, names: Names, stamps: dict[str, int], start: int) -> str:
    """Writes an index in one move and says where; where the place cannot be written, says that.

    start: time in ns before the first folder was listed.
    """
    arrays = (names.ends, names.image_tails, names.label_tails, names.text)
    facts = {"key": key, "start": start, "stamps": stamps, "tails": names.tails, "sizes": [a.size for a in arrays]}
    header = json.dumps({**facts, "checksum": _checksum(facts, arrays)}).encode()
    header += b" " * (-(len(header) + 1) % 64) + b"\n"  # so that the numbers after it are aligned
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as new:
            try:
                new.write(header)
                for array in arrays:
                    new.write(array.data)
                new.flush()
                os.fsync(new.fileno())
                os.replace(new.name, file)
            except BaseException:
                os.unlink(new.name)
                raise
    except OSError as error:
        return f"not kept, so the next start lists again: {error}; set {CACHE_VARIABLE} to a folder that can be written"
    return f"index kept in {file}"


def read_index(file: Path, key: str) -> Names | None:
    """The names of an index, mapped into memory; None where there is none, or it is of another time."""
    try:
        with file.open("rb") as opened:
            header = opened.readline()
            facts = json.loads(header)
        if facts["key"] != key or not _is_current(facts["stamps"], facts["start"]):
            return None
        arrays, offset = [], len(header)
        for size, kind in zip(facts["sizes"], (np.int64, np.uint8, np.uint8, np.uint8), strict=True):
            arrays.append(np.memmap(file, kind, "r", offset, (size,)).view(np.ndarray))  # whose slices are cheaper
            offset += arrays[-1].nbytes
        if facts.pop("checksum") != _checksum(facts, arrays):
            return None
    except (OSError, ValueError, KeyError, TypeError):  # there is no index, or it is not one of ours: list again
        return None
    ends, image_tails, label_tails, text = arrays
    return Names(tuple(facts["tails"]), text, ends, image_tails, label_tails)


def _checksum(facts: dict, arrays: Iterable[np.ndarray]) -> int:
    """CRC-32 of all that an index holds; 35 MB, a million names, take 0.02 s."""
    checksum = zlib.crc32(json.dumps(facts).encode())
    for array in arrays:
        checksum = zlib.crc32(array.data, checksum)
    return checksum


def _is_current(stamps: dict[str, int], start: int) -> bool:
    settled = all(stamp < start - SETTLE for stamp in stamps.values())
    return settled and all(os.stat(folder).st_mtime_ns == stamp for folder, stamp in stamps.items())


def _told(pairs: Iterable[tuple[str, str]], folder: Path) -> Iterator[tuple[str, str]]:
    """The pairs, with a line every few seconds: how many there are in all is not known before."""
    due = time.monotonic() + TELL_EVERY
    for count, pair in enumerate(pairs, 1):
        yield pair
        if count % 1000 == 0 and time.monotonic() >= due:
            get_console().print(f"listing {folder}: {count:,} files so far", markup=False)
            due = time.monotonic() + TELL_EVERY
