"""Where the data does not fit the settings that will read it."""

from collections.abc import Sequence

from src.config import Config
from src.data.classes import Classes
from src.doctor.census import Census
from src.doctor.finding import ERROR, WARNING, Finding
from src.engine.inference import require_fit


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
