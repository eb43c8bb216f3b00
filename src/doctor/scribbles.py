"""Training splits labelled by strokes: most pixels have no label, so other things are wrong than with full masks."""

from collections.abc import Sequence

import numpy as np

from src.config import DataConfig
from src.constants import IGNORE
from src.data import load_items
from src.data.classes import Classes
from src.data.reading import FileItem, Item, read_mask, to_class_ids
from src.data.scribble_audit import Audit
from src.doctor import balance, broken
from src.doctor.census import Census
from src.doctor.finding import ERROR, WARNING, Finding, name_some

MOST_WRONG = 0.01  # share of the labelled pixels: people slip at the edges, but not more often
MEND = {
    **broken.MEND,
    "size_differs": "make the scribbles for images of this size: with tools/make_scribbles.py, or as they were drawn",
    "values_outside_table": "label files of scribbles hold class ids, and 255 off the strokes: make them anew",
}


def findings(census: Census, classes: Classes, data: DataConfig) -> list[Finding]:
    """Images without a stroke and classes never scribbled, which are errors; strokes that full masks do not agree with;
    classes in no full mask either; rare ones."""
    found, pixels = strokeless(census), balance.class_pixels(census, classes)
    if not any(pixels):
        return found
    found += disagreeing(data, census.split, classes)
    absent = {k for k in range(len(classes)) if not pixels[k]}
    meant = shown_in_masks(data, census.split, classes, absent)
    found += never_scribbled(census.split, meant, classes)
    return found + balance.absent(census, classes, absent - meant, training=True) + balance.rare(census, classes)


def strokeless(census: Census) -> list[Finding]:
    """The error for images without a stroke."""
    if not census.unlabelled:
        return []
    if census.unlabelled == census.count:
        return balance.unlabelled(census)
    listed = name_some(census.blank, census.unlabelled)
    text = f"split {census.split}: {census.unlabelled} of {census.count} images have no stroke: {listed}"
    mend = "draw one, or leave them out: without a stroke only the regulariser learns from an image"
    return [Finding("images_without_stroke", ERROR, text, tuple(census.blank), mend)]


def disagreeing(data: DataConfig, split: str, classes: Classes) -> list[Finding]:
    """Strokes that show another class than the full masks of the split, where there are any and they have a class."""
    if data.scribbles is None:
        return []
    audit = Audit(len(classes))
    full = load_items(data.model_copy(update={"scribbles": None}), split)
    for pair in zip(load_items(data, split), full, strict=True):
        try:
            label, mask = (to_class_ids(read_mask(i.label), i.table or classes.table, i.label) for i in pair)
        except (ValueError, OSError):  # told by the check of files
            continue
        if label.shape == mask.shape:
            audit.add(str(pair[0].label), np.where(mask == IGNORE, IGNORE, label), mask)
    if not audit.wrong:
        return []
    share, names = 1.0 - audit.purity, list(audit.mixed)
    text = (
        f"split {split}: {share:.2%} of the strokes' pixels have another class than the full masks, in {len(names)} of "
        f"{audit.images} images: {name_some(names)}"
    )
    mend = "if classes are numbered otherwise, or these are strokes of other masks, make them anew; else correct them"
    return [Finding("strokes_disagree", ERROR if share > MOST_WRONG else WARNING, text, tuple(names), mend)]


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
