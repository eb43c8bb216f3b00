"""Training splits labelled by strokes: most pixels have no label, so other things are wrong than with full masks."""

from collections.abc import Sequence

import numpy as np

from src.config import DataConfig
from src.constants import IGNORE
from src.data import load_items
from src.data.classes import Classes
from src.data.reading import FileItem, Item, read_mask
from src.doctor import balance
from src.doctor.census import Census
from src.doctor.finding import ERROR, WARNING, Finding, name_some


def findings(census: Census, classes: Classes, data: DataConfig) -> list[Finding]:
    """Images without a stroke; classes never scribbled, which is an error, or in no full mask either; rare ones."""
    found, pixels = strokeless(census), balance.class_pixels(census, classes)
    if not any(pixels):
        return found
    absent = {k for k in range(len(classes)) if not pixels[k]}
    meant = shown_in_masks(data, census.split, classes, absent)
    found += never_scribbled(census.split, meant, classes)
    return found + balance.absent(census, classes, absent - meant, training=True) + balance.rare(census, classes)


def strokeless(census: Census) -> list[Finding]:
    """Images without a stroke: an error where there is nothing else."""
    if not census.unlabelled:
        return []
    if census.unlabelled == census.count:
        return balance.unlabelled(census)
    listed = name_some(census.blank, census.unlabelled)
    text = f"split {census.split}: {census.unlabelled} of {census.count} images have no stroke: {listed}"
    mend = "draw one, or leave them out: without a stroke only the regulariser learns from an image"
    return [Finding("images_without_stroke", WARNING, text, tuple(census.blank), mend)]


def never_scribbled(split: str, ids: set[int], classes: Classes) -> list[Finding]:
    """The error for classes that no stroke shows though they are meant to be learnt."""
    if not ids:
        return []
    listed = ", ".join(classes.names[k] for k in sorted(ids))
    text = f"split {split}: {len(ids)} of {len(classes)} classes are never scribbled: {listed}"
    mend = (
        "nothing would teach them: draw strokes for them, make scribbles with a lower --smallest or --drop, or leave "
        "the classes out"
    )
    return [Finding("class_never_scribbled", ERROR, text, (), mend)]


def find_never_scribbled(data: DataConfig, split: str, items: Sequence[Item], classes: Classes) -> list[Finding]:
    """As `never_scribbled`, from the label files: they are read until every class was seen."""
    absent = set(range(len(classes))) - classes_shown(items, classes.table, set(range(len(classes))))
    return never_scribbled(split, shown_in_masks(data, split, classes, absent), classes)


def shown_in_masks(data: DataConfig, split: str, classes: Classes, ids: set[int]) -> set[int]:
    """Those of the classes that the full masks of the split show; all of them where there are no full masks."""
    if not ids or data.scribbles is None:
        return ids
    return classes_shown(load_items(data.model_copy(update={"scribbles": None}), split), classes.table, ids)


def classes_shown(items: Sequence[Item], table: dict[int, int], wanted: set[int]) -> set[int]:
    """Those of the wanted classes that label files show, read in their order until all were seen."""
    shown: set[int] = set()
    for item in items:
        if shown == wanted:
            break
        if isinstance(item, FileItem):
            own = table if item.table is None else item.table
            shown |= {own.get(value, IGNORE) for value in values_of(item)} & wanted
    return shown


def values_of(item: FileItem) -> list[int]:
    """The values of a label file; none where it cannot be read, which other checks tell."""
    try:
        return np.flatnonzero(np.bincount(read_mask(item.label).ravel())).tolist()
    except (ValueError, OSError):
        return []
