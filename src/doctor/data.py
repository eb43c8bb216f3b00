"""All checks of the data of a configuration, and the short one before a training."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from src.config import Config, DataConfig
from src.constants import IGNORE
from src.data import is_scribbled, load_classes
from src.data.classes import Classes
from src.data.reading import Item, SceneItem
from src.doctor import balance, broken, duplicates, scribbles, settings, values
from src.doctor.census import Census, take_census
from src.doctor.finding import ERROR, WARNING, Finding, errors
from src.doctor.listing import list_split
from src.log import progress

FIRST_SECONDS = 1.5  # the short check begins no further portion after that


def examine(config: Config, splits: Sequence[str], console: Console) -> tuple[list[Finding], dict]:
    """Reads every file of the splits; findings, and the facts of the report. The console gets the progress."""
    start = time.monotonic()
    try:
        classes = load_classes(config.data)
    except (ValueError, OSError) as error:
        return [Finding("classes_unreadable", ERROR, str(error))], {}
    found, censuses = [], []
    if config.data.train_split == config.data.val_split:
        text = f"data.train_split and data.val_split are both {config.data.val_split}: scores of trained images"
        found.append(Finding("same_split", WARNING, text, (), "name the split that is kept for validation"))
    for split in dict.fromkeys(splits):
        items, missing = list_split(config.data, split)
        found += missing
        with progress(len(items), f"split {split}", console=console) as advance:
            censuses.append(take_census(split, items, classes.table, advance=advance))
    found += values.findings(censuses, classes, table_file(config.data))  # first: one remedy may mend all the files
    for census in censuses:
        strokes = is_scribbled(config.data, census.split)
        found += broken.findings(census, scribbles.MEND if strokes else broken.MEND)
        if strokes:
            found += scribbles.findings(census, classes, config.data)
        else:
            found += balance.findings(census, classes, training=census.split == config.data.train_split)
    found += duplicates.findings(censuses)
    found += settings.findings(censuses, config, classes)
    return found, describe(censuses, classes, time.monotonic() - start)


def table_file(data: DataConfig) -> str | None:
    """The file in which the user states what the values stand for; None for data sets that come with the project."""
    return str(Path(data.root or "") / "classes.yaml") if data.dataset == "folder" else None


def describe(censuses: Sequence[Census], classes: Classes, seconds: float) -> dict:
    """What was counted, ready for JSON."""
    splits = {census.split: count(census, classes) for census in censuses}
    return {"classes": list(classes.names), "seconds": seconds, "splits": splits}


def count(census: Census, classes: Classes) -> dict:
    """Numbers of one split: pixels by class and by value, kinds of files, sizes (height, width)."""
    pixels, masks = balance.class_pixels(census, classes), census.class_masks
    total = sum(pixels)
    rows = [
        {"name": name, "pixels": pixels[k], "share": pixels[k] / max(total, 1), "masks": masks[k]}
        for k, name in enumerate(classes.names)
    ]
    sizes = [{"size": list(size), "images": number} for size, number in census.sizes.most_common(10)]
    return {
        "samples": census.count, "unusable": census.bad, "classes": rows,
        "values": {str(value): census.pixels[value] for value in sorted(census.pixels)},
        "ignored_pixels": census.class_pixels[IGNORE],
        "kinds": {"images": dict(census.image_kinds), "masks": dict(census.mask_kinds)}, "sizes": sizes,
    }  # fmt: skip


def check_first(data: DataConfig, classes: Classes, splits: dict[str, Sequence[Item]]) -> list[Finding]:
    """The check before a training, of the first data.check_samples items of each split; returns the warnings.

    It takes about a second at most, then it judges what it has read; of scribbles alone it reads on until every class
    was seen. Drawn scenes are not looked at. Where data.on_bad_sample=skip, bad files of the training split are a
    warning. Raises ValueError that lists the errors.
    """
    censuses, found = [], []
    for split, items in splits.items():
        first = [items[i] for i in range(min(data.check_samples, len(items)))]
        first = [item for item in first if not isinstance(item, SceneItem)]
        censuses.append(take_census(split, first, classes.table, seconds=FIRST_SECONDS / len(splits)))
        strokes = is_scribbled(data, split)
        bad = broken.findings(censuses[-1], scribbles.MEND if strokes else broken.MEND)
        if data.on_bad_sample == "skip" and split == data.train_split:
            bad = [Finding(f.code, WARNING, f.text, f.where, f.mend) for f in bad]
        found += bad
        if first and strokes:
            found += scribbles.strokeless(censuses[-1])
            found += scribbles.find_never_scribbled(data, split, items, classes)
    conventions = values.findings(censuses, classes, table_file(data), complete=False)
    if not errors(found):  # files that are left out as asked say nothing of the others
        conventions = [Finding(f.code, WARNING, f.text, f.where, f.mend) for f in conventions]
    found = [*conventions, *found]
    if errors(found):
        listed = "\n".join(f"- {f.text}\n    {f.mend}" for f in errors(found))
        raise ValueError(
            f"the first samples are not as they must be:\n{listed}\n"
            "`python tools/doctor.py data --config FILE` reads all of them; data.check_samples=0 trains without a look"
        )
    return found
