"""The items of a split even where it is not as it should be: what can be paired is examined, the rest is named."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from src.config import DataConfig
from src.data import load_items
from src.data.folder import folder_root
from src.data.holdout import split_part
from src.data.listing import SUFFIXES
from src.data.reading import FileItem, Item
from src.doctor.census import NAMED
from src.doctor.finding import ERROR, Finding, name_some

ENDINGS = (
    "_mask", "-mask", "_label", "_labels", "_seg", "_gt", "_GT", "_L", "_gtFine_labelIds", "_gtFine_labelTrainIds",
    "_leftImg8bit", "_image", "_img", "_rgb", "_sat",
)  # fmt: skip


def list_split(data: DataConfig, split: str) -> tuple[Sequence[Item], list[Finding]]:
    """The items of a split that can be paired, and what is wrong with the others."""
    try:
        return load_items(data, split), []
    except (ValueError, OSError) as error:
        if data.dataset != "folder":
            return [], [Finding("split_unreadable", ERROR, f"split {split}: {error}")]
        found = folder_pairs(data.root, split_part(split)[0])
        return found if found[1] else ([], [Finding("split_unreadable", ERROR, f"split {split}: {error}")])


def folder_pairs(root: str | None, split: str) -> tuple[list[FileItem], list[Finding]]:
    """The pairs of a split of the data set `folder`; findings for missing folders, twins and files left alone."""
    try:
        base = folder_root(root)
    except (ValueError, OSError) as error:
        return [], [Finding("split_unreadable", ERROR, f"split {split}: {error}")]
    sides, findings = {}, []
    for kind in ("images", "labels"):
        place = base / kind / split
        if not place.is_dir():
            splits = sorted(p.name for p in place.parent.iterdir() if p.is_dir()) if place.parent.is_dir() else []
            mend = f"make it, or set data.train_split and data.val_split to splits that exist: {name_some(splits)}"
            text = f"split {split}: data folder {place} does not exist"
            findings.append(Finding("folder_missing", ERROR, text, (str(place),), mend))
            continue
        sides[kind] = files_by_name(place)
    if findings:
        return [], findings
    images, labels = sides["images"], sides["labels"]
    if not images and not labels:
        text = f"split {split} is empty: {base}/images/{split} and {base}/labels/{split} hold no file of a known kind"
        mend = f"put images and labels there ({', '.join(SUFFIXES)}) or choose another split"
        return [], [Finding("split_empty", ERROR, text, (), mend)]
    findings += [*twins(images, split), *twins(labels, split)]
    findings += alone(images, labels, split, "image_alone", "image", "label")
    findings += alone(labels, images, split, "label_alone", "label", "image")
    both = sorted(images.keys() & labels.keys())
    return [FileItem(name, images[name][0], labels[name][0]) for name in both], findings


def files_by_name(place: Path) -> dict[str, list[Path]]:
    """Name relative to a folder, without suffix -> image files of that name, hidden ones left out."""
    found: dict[str, list[Path]] = {}
    for folder, _, names in os.walk(place, followlinks=True):
        for file in (Path(folder) / name for name in sorted(names) if not name.startswith(".")):
            if file.suffix.lower() in SUFFIXES:
                found.setdefault(file.relative_to(place).with_suffix("").as_posix(), []).append(file)
    return found


def twins(files: dict[str, list[Path]], split: str) -> list[Finding]:
    """Files that differ in their suffix only, so that nobody knows which one is meant."""
    double = [same for same in files.values() if len(same) > 1]
    if not double:
        return []
    shown = "; ".join(" and ".join(map(str, same)) for same in double[:5])
    text = f"split {split}: {len(double)} names belong to several files: {shown}"
    where = tuple(str(file) for same in double for file in same)[:NAMED]
    return [Finding("same_name", ERROR, text, where, "keep one file of each name")]


def alone(
    files: dict[str, list[Path]], partners: dict[str, list[Path]], split: str, code: str, what: str, other: str
) -> list[Finding]:
    """Files without a partner of the same name; says so where another name is meant."""
    names = sorted(files.keys() - partners.keys())
    if not names:
        return []
    paths = [str(files[name][0]) for name in names]
    text = f"split {split}: {len(names)} {what}s have no {other}: {name_some(paths)}"
    mend = near_names(names, set(partners) - set(files)) or f"add the {other}s, or remove the {what}s"
    return [Finding(code, ERROR, text, tuple(paths[:NAMED]), mend)]


def near_names(names: list[str], others: set[str]) -> str:
    """How the names of both sides can be made equal, where one rule does it for most of them; else nothing."""

    def without_ending(name: str) -> str:
        fitting = [ending for ending in ENDINGS if name.endswith(ending)]
        return name[: -len(max(fitting, key=len))] if fitting else name

    rules = {
        "write upper and lower case alike in both names": str.lower,
        "write them in one Unicode form (NFC): they look equal, but their bytes differ": lambda name: (
            unicodedata.normalize("NFC", name)
        ),
        "leave endings such as _mask or _gtFine_labelIds out of the names: NAME.jpg needs NAME.png": without_ending,
    }
    for advice, rule in rules.items():
        ours, theirs = {rule(name) for name in names}, {rule(name) for name in others}
        if len(ours & theirs) * 2 > len(names):
            return advice
    return ""
