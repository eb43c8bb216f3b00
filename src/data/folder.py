"""Users' own data: images/<split> and labels/<split> paired by name, and classes.yaml beside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

from src.constants import IGNORE
from src.data.classes import MAX_CLASSES, Classes, Colour, generate_palette, identity_table
from src.data.index import pair_folders
from src.data.listing import require_folder
from src.data.reading import FileItem

LAYOUT = "a data set is ROOT/images/<split>, ROOT/labels/<split> and ROOT/classes.yaml"
IGNORE_NAME = "ignore"
MAX_VALUE = 65535  # the largest value of a 16-bit mask


def folder(root: str | None, split: str) -> Sequence[FileItem]:
    """The pairs of one split, sorted by name; nested folders are searched.

    Raises FileNotFoundError for missing folders, ValueError for an empty split, for two files of one name and for
    images or labels without a partner.
    """
    base = folder_root(root)
    images, labels = (base / kind / split for kind in ("images", "labels"))
    for path in (images, labels):
        _require_split(path)
    return pair_folders(images, labels, split)


def folder_root(root: str | None) -> Path:
    """The data set's folder; it has no default."""
    if root is None:
        raise ValueError(f"the data set 'folder' needs data.root, the path of your data; {LAYOUT}")
    return require_folder(Path(root), f"set data.root to your data; {LAYOUT}")


def _require_split(path: Path) -> None:
    if not path.is_dir():
        beside = sorted(p.name for p in path.parent.iterdir() if p.is_dir()) if path.parent.is_dir() else []
        raise FileNotFoundError(
            f"data folder {path.absolute()} does not exist; {LAYOUT}; "
            f"splits there: {', '.join(beside) or 'none'}. Set data.train_split and data.val_split accordingly"
        )


def folder_classes(root: str | None) -> Classes:
    """Reads ROOT/classes.yaml: names, optionally palette (default: generated) and table (default: ids, 255 ignored).

    `{names: [road, sky], palette: [[128,64,128],[70,130,180]], table: {0: road, 1: sky, 255: ignore}}`
    Raises FileNotFoundError without the file and ValueError naming file and key for what is wrong in it.
    """
    path = folder_root(root) / "classes.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{path.absolute()} does not exist; write it, such as `names: [road, sky]`")
    try:
        content = YAML(typ="safe", pure=True).load(path)
    except YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    known = ("names", "palette", "table")
    if not isinstance(content, Mapping) or "names" not in content:
        raise ValueError(f"{path}: key 'names' is missing; write it, such as `names: [road, sky]`")
    unknown = [str(key) for key in content if key not in known]
    if unknown:
        raise ValueError(f"{path}: unknown key {', '.join(map(repr, unknown))}; known: {', '.join(known)}")
    names = _names(content["names"], path)
    palette = _palette(content["palette"], names, path) if "palette" in content else generate_palette(len(names))
    table = _table(content["table"], names, path) if "table" in content else identity_table(len(names))
    return Classes(names, palette, table)


def _names(value: object, path: Path) -> tuple[str, ...]:
    where = f"{path}: key 'names'"
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where} must be a list of class names, not {value!r}")
    for name in value:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{where}: {name!r} is not a name; put it in quotes if it is meant as one")
        if value.count(name) > 1:
            raise ValueError(f"{where}: {name!r} occurs {value.count(name)} times; names must differ")
        if name == IGNORE_NAME:
            raise ValueError(f"{where}: {IGNORE_NAME!r} stands for pixels without a label; drop or rename the class")
    if len(value) > MAX_CLASSES:
        raise ValueError(f"{where} has {len(value)} classes; at most {MAX_CLASSES} are possible, merge some")
    return tuple(value)


def _palette(value: object, names: tuple[str, ...], path: Path) -> tuple[Colour, ...]:
    where = f"{path}: key 'palette'"
    if not isinstance(value, list) or len(value) != len(names):
        got = f"{len(value)} colours" if isinstance(value, list) else repr(value)
        raise ValueError(f"{where} must list one colour for each of the {len(names)} names, not {got}")
    for name, colour in zip(names, value, strict=True):
        if not isinstance(colour, list) or len(colour) != 3 or not all(_is_int(part, 255) for part in colour):
            raise ValueError(f"{where}: colour {colour!r} of {name!r} must be [red, green, blue], each 0..255")
    return tuple(tuple(colour) for colour in value)


def _table(value: object, names: tuple[str, ...], path: Path) -> dict[int, int]:
    where = f"{path}: key 'table'"
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{where} must map values in the label files to names, such as {{0: {names[0]}, 255: ignore}}")
    ids = {**{name: k for k, name in enumerate(names)}, IGNORE_NAME: IGNORE}
    for key, name in value.items():
        if not _is_int(key, MAX_VALUE):
            raise ValueError(f"{where}: {key!r} is not a value of a label file; allowed: integers 0..{MAX_VALUE}")
        if name not in ids:
            raise ValueError(f"{where}: value {key} stands for {name!r}, which is no name; known: {', '.join(ids)}")
    unused = [name for name in names if name not in value.values()]
    if unused:
        raise ValueError(f"{where}: no value stands for {', '.join(unused)}; add one for each or drop the names")
    return {key: ids[name] for key, name in value.items()}


def _is_int(value: object, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= largest
