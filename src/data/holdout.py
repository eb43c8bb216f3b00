"""A fixed tenth of a split, set apart for choosing settings without looking at the evaluation split.

`train[held]` names the tenth of the split `train`, `train[fit]` the rest.
"""

import re
from collections.abc import Sequence
from typing import TypeVar

from src.data.index import FilePairs

T = TypeVar("T")
SHARE = 10  # one item in ten is held out
BLOCKS = 4
PART = r"(?P<split>[^\[\]]+)\[(?P<part>[^\[\]]*)\]"
HELD, FIT = "held", "fit"


def split_part(split: str) -> tuple[str, str | None]:
    """A split's name and the part of it that is meant: `train[fit]` -> (`train`, `fit`), `train` -> (`train`, None).

    Raises ValueError for another part than `fit` and `held`.
    """
    match = re.fullmatch(PART, split)
    if match is None:
        return split, None
    if match["part"] not in (FIT, HELD):
        raise ValueError(
            f"split {split!r}: unknown part {match['part']!r}; write {match['split']}[{HELD}] for the tenth that is "
            f"held out, {match['split']}[{FIT}] for the rest, {match['split']} for all"
        )
    return match["split"], match["part"]


def select_part(items: Sequence[T], part: str | None) -> Sequence[T]:
    """The items of a part in their order, all for None.

    Held out are BLOCKS runs of neighbours, evenly spread over the list: frames of a video resemble their neighbours, so
    single frames would be known from training. Raises ValueError for fewer than SHARE * BLOCKS items.
    """
    if part is None:
        return items
    if len(items) < SHARE * BLOCKS:
        raise ValueError(f"{len(items)} items are too few to hold out a tenth; needed: {SHARE * BLOCKS}")
    held = held_positions(len(items))
    positions = [position for position in range(len(items)) if (position in held) == (part == HELD)]
    return items.take(positions) if isinstance(items, FilePairs) else [items[position] for position in positions]


def held_positions(count: int) -> set[int]:
    """Positions of the held-out tenth, rounded down, among `count` items: in the middle of each of BLOCKS shares."""
    total, held = count // SHARE, set()
    for block in range(BLOCKS):
        length = total * (block + 1) // BLOCKS - total * block // BLOCKS
        start = (2 * block + 1) * count // (2 * BLOCKS) - length // 2
        held |= set(range(start, start + length))
    return held
