"""Everything that is counted over a split, read by several threads: decoding leaves the interpreter lock."""

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2

from src.constants import IGNORE
from src.data.classes import Colour
from src.data.reading import Item
from src.doctor.pairs import Pair, Problem, inspect

NAMED = 20  # files that are remembered of each kind of problem and of each value
PORTION, SHORT_PORTION = 32, 4  # items a thread until the progress, or the clock, is looked at


@dataclass
class Census:
    """A split as far as it was read.

    pixels: value in the label files -> pixels; holders: value -> the first masks that hold it; unknown: values outside
    the table. class_pixels, class_masks: class id or IGNORE -> pixels, masks that hold it. problems: code -> the first
    of that kind; problem_counts: all. places: digest of an image -> its first name. repeated: (name, earlier name) of
    equal images. unlabelled, blank: number and first of the masks in which every pixel is ignored. richest: most
    classes in one mask, and the mask. own_table: whether values are those of a table of the split's own.
    """

    split: str
    count: int = 0
    pixels: Counter = field(default_factory=Counter)
    unknown: set[int] = field(default_factory=set)
    class_pixels: Counter = field(default_factory=Counter)
    class_masks: Counter = field(default_factory=Counter)
    holders: dict[int, list[str]] = field(default_factory=dict)
    problems: dict[str, list[Problem]] = field(default_factory=dict)
    problem_counts: Counter = field(default_factory=Counter)
    bad: int = 0
    places: dict[bytes, str] = field(default_factory=dict)
    repeated: list[tuple[str, str]] = field(default_factory=list)
    image_kinds: Counter = field(default_factory=Counter)
    mask_kinds: Counter = field(default_factory=Counter)
    sizes: Counter = field(default_factory=Counter)
    unlabelled: int = 0
    blank: list[str] = field(default_factory=list)
    richest: tuple[int, str] = (0, "")
    shown: dict[tuple[int, Colour], str] = field(default_factory=dict)
    colours: set[Colour] = field(default_factory=set)
    own_table: bool = False

    def add(self, pair: Pair) -> None:
        """Counts one pair."""
        self.count += 1
        self.bad += bool(pair.problems)
        self.own_table |= pair.own_table
        for problem in pair.problems:
            self.problem_counts[problem.code] += 1
            remember(self.problems.setdefault(problem.code, []), problem)
        if pair.digest is not None and self.places.setdefault(pair.digest, pair.name) != pair.name:
            remember(self.repeated, (pair.name, self.places[pair.digest]))
        self.pixels.update(pair.values)
        for value in pair.values:
            remember(self.holders.setdefault(value, []), pair.label)
        for kinds, found in ((self.image_kinds, pair.image_kind), (self.mask_kinds, pair.mask_kind)):
            kinds.update([found] if found else [])
        if pair.size is not None:
            self.sizes[pair.size] += 1
            self.add_classes(pair)
        for entry in pair.shown.items():
            self.shown.setdefault(entry, pair.label)
        self.colours |= pair.colours

    def add_classes(self, pair: Pair) -> None:
        """Counts what the values of a mask stand for."""
        self.unknown |= pair.unknown
        self.class_pixels.update(pair.classes)
        self.class_masks.update(pair.classes.keys())
        found = len(pair.classes.keys() - {IGNORE})
        self.richest = max(self.richest, (found, pair.label), key=lambda entry: entry[0])
        if not found and not pair.unknown:
            self.unlabelled += 1
            remember(self.blank, pair.label)


def remember(names: list, name: object) -> None:
    """Adds to a list until it is long enough to be shown."""
    if len(names) < NAMED:
        names.append(name)


def take_census(
    split: str, items: Sequence[Item], table: dict[int, int], *, seconds: float | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Census:  # fmt: skip
    """Inspects the items in their order.

    seconds: no further portion is begun after that time, None for no limit. advance: told how many were read.
    """
    census, start = Census(split), time.monotonic()
    cv2.setNumThreads(1)  # the threads here are the parallelism
    threads = len(os.sched_getaffinity(0))
    size = threads * (PORTION if seconds is None else SHORT_PORTION)
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(items), size):
            if seconds is not None and time.monotonic() - start > seconds:
                break
            portion = [items[i] for i in range(first, min(first + size, len(items)))]
            for pair in pool.map(partial(inspect, table=table), portion):
                census.add(pair)
            advance(len(portion))
    return census


def short(path: str) -> str:
    """A file with its folder: enough to find it, and to tell image from label."""
    return "/".join(Path(path).parts[-2:])
