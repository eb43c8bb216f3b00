"""Images and labels on disk, paired into items, and their number held against the published one."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from src.data.reading import FileItem, Item

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
SHOWN = 3  # examples in a message


def require_folder(path: Path, remedy: str) -> Path:
    """Returns the path of an existing folder; raises FileNotFoundError with the remedy otherwise."""
    if not path.is_dir():
        raise FileNotFoundError(f"data folder {path.absolute()} does not exist; {remedy}")
    return path


def require_root(root: str | None, dataset: str, layout: str) -> Path:
    """data.root as a path, for data sets that have no place of their own. layout: what must lie in it."""
    if root is None:
        raise ValueError(f"the data set {dataset!r} needs data.root, the folder with {layout} (docs/datasets.md)")
    return require_folder(Path(root), f"set data.root to the folder with {layout} (docs/datasets.md)")


def require_split(split: str, known: Collection[str], dataset: str) -> str:
    """The split, where the data set has it."""
    if split not in known:
        raise ValueError(
            f"{dataset} has no split {split!r}; known: {', '.join(known)}. Set data.train_split and data.val_split"
        )
    return split


def check_count(
    items: Sequence[Item], published: int | tuple[int, ...], dataset: str, split: str, complete: bool
) -> Sequence[Item]:
    """The items, if they are as many as published; for complete=False, any number.

    published: the number, or all that are in use. Raises ValueError that names both numbers.
    """
    wanted = published if isinstance(published, tuple) else (published,)
    if complete and len(items) not in wanted:
        raise ValueError(
            f"split {split!r} of {dataset} has {len(items)} items here, published are "
            f"{' or '.join(map(str, wanted))}; copy or prepare the data again (docs/datasets.md), or set "
            f"data.options.complete=false to use a part of them on purpose"
        )
    return items


def read_names(listing: Path, split: str) -> list[str]:
    """The names in a list file, one a line, in its order.

    Raises FileNotFoundError for a missing file, ValueError for an empty one and for a name that occurs twice.
    """
    if not listing.is_file():
        known = ", ".join(sorted(path.stem for path in listing.parent.glob("*.txt"))) or "none"
        raise FileNotFoundError(f"{listing} does not exist; splits of {listing.parent}: {known}")
    names = listing.read_text(encoding="utf-8").split()
    if not names:
        raise ValueError(f"split {split!r} is empty: {listing} names no image; write one name a line")
    if len(set(names)) < len(names):
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(f"{listing} names {count_of(twice, 'image')} more than once; leave each name once")
    return names


def pair_names(
    names: Iterable[str], images: tuple[Path, str], labels: tuple[Path, str], source: Path
) -> list[FileItem]:
    """The items of names; images and labels are a folder and what follows the name there, such as `.jpg`.

    source: what lists the names, for the message. Raises FileNotFoundError where files are missing.
    """
    items = [FileItem(name, images[0] / f"{name}{images[1]}", labels[0] / f"{name}{labels[1]}") for name in names]
    missing = missing_files(path for item in items for path in (item.image, item.label))
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} files that {source} names do not exist: {', '.join(map(str, missing[:SHOWN]))}"
            f"{', ...' if len(missing) > SHOWN else ''}; copy or prepare the data again (docs/datasets.md)"
        )
    return items


def missing_files(paths: Iterable[Path]) -> list[Path]:
    """Those of the paths that do not exist. Folders are listed once: a question for each file is slow on a network."""
    present: dict[Path, set[str]] = {}
    missing = []
    for path in paths:
        if path.parent not in present:
            present[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
        if path.name not in present[path.parent]:
            missing.append(path)
    return missing


def scan(folder: Path, tails: Sequence[str], stamps: dict[str, int]) -> Iterator[tuple[str, str]]:
    """(name, tail) of every file below a folder that ends in one of the tails, in whatever order the disk has.

    name: path below the folder without the tail; tail: as it is written in the file's name. Small letters in `tails`
    stand for both. Linked folders are followed, files that start with a dot passed over.
    stamps: gets every folder with its time of change in ns, taken before it is listed.
    """
    ends = tuple(tails)
    waiting = [""]
    while waiting:
        below = waiting.pop()
        place = os.path.join(folder, below)
        stamps[place] = os.stat(place).st_mtime_ns
        with os.scandir(place) as entries:
            for entry in entries:
                file = entry.name
                if entry.is_dir():
                    waiting.append(f"{below}{file}/")
                elif not file.startswith(".") and (file.endswith(ends) or file.lower().endswith(ends)):
                    end = next(len(tail) for tail in tails if file.lower().endswith(tail.lower()))
                    yield below + file[:-end], file[-end:]


def by_name(pairs: Iterable[tuple[str, str]], folder: Path) -> dict[str, str]:
    """name -> tail; ValueError where two files have one name."""
    found: dict[str, str] = {}
    for name, tail in pairs:
        if name in found:
            one, other = sorted((f"{name}{found[name]}", f"{name}{tail}"))
            raise ValueError(f"{folder}: {one} and {other} have one name, so they cannot be paired; remove one")
        found[name] = tail
    return found


def check_pairs(
    images: Mapping[str, str], labels: Mapping[str, str], folders: tuple[Path, Path], split: str, tails: Iterable[str]
) -> None:
    """Raises ValueError where there is nothing, an image without a label or a label without an image.

    images, labels: name -> tail; folders: theirs; tails: all that were looked for.
    """
    if not images and not labels:
        raise ValueError(
            f"split {split!r} of {folders[0]} and {folders[1]} is empty: no file of the kinds {', '.join(tails)}; "
            f"put images and labels there or choose another split"
        )
    alone, orphans = sorted(images.keys() - labels.keys()), sorted(labels.keys() - images.keys())
    if alone or orphans:
        raise ValueError(
            f"split {split!r} of {folders[0]} and {folders[1]} is not paired: {count_of(alone, 'image')} without a "
            f"label, {count_of(orphans, 'label')} without an image. Add or remove files until both folders hold the "
            f"same names"
        )


def count_of(names: Sequence[str], what: str) -> str:
    """`4 images (a, b, c, ...)`."""
    examples = f" ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})" if names else ""
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'}{examples}"
