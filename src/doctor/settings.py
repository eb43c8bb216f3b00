"""The settings that data are looked at with, and where the data does not fit them."""

from collections.abc import Sequence
from pathlib import Path

from src.config import Config, load_config
from src.config_loading import merge, read_overrides, read_tree
from src.data.classes import Classes
from src.doctor.census import Census
from src.doctor.finding import ERROR, WARNING, Finding
from src.engine.inference import require_fit

# Sections that say nothing of the data, for files that have none: the bases of the data sets. Mode resize fits all.
UNREAD = (
    "model={backbone: {name: none}, head: {name: none}}", "loss={name: none}", "optimizer={name: sgd, lr: 1.0}",
    "train={steps: 1000000000, batch_size: 1}", "eval={mode: resize, size: [1, 1]}",
)  # fmt: skip


def load_settings(path: str, overrides: Sequence[str]) -> Config:
    """As `load_config`, but a whole section besides `data` may be absent. For looking at data, not for building."""
    given = merge(read_tree(Path(path)), read_overrides(overrides)).value
    return load_config(path, [*overrides, *(text for text in UNREAD if text.partition("=")[0] not in given)])


def findings(censuses: Sequence[Census], config: Config, classes: Classes) -> list[Finding]:
    """Images that are too large for the evaluation; more classes in one mask than a crop has room for."""
    found = []
    for census in censuses:
        if census.split == config.data.val_split and config.eval.mode == "whole":
            sizes = ((f"split {census.split}", size) for size in sorted(census.sizes))
            try:
                require_fit(sizes, config.eval)
            except ValueError as error:
                found.append(Finding("eval_size", ERROR, str(error)))
        room = config.data.max_classes or len(classes)
        number, file = census.richest
        if census.split == config.data.train_split and number > room:
            text = f"split {census.split}: {file} holds {number} classes, but data.max_classes has room for {room}"
            mend = f"set data.max_classes={number}, or a crop may stop the training that holds them all"
            found.append(Finding("max_classes", WARNING, text, (file,), mend))
    return found
