"""Spellings of class names (spec sazs, sections 3 and 4.1): which two names mean the same class."""

import difflib
from collections.abc import Sequence

SHOWN = 3  # nearest names in an error

# Each line is one class, joined and in lower case. The last three: CamVid's names and Cityscapes' names.
SAME = (
    ("aeroplane", "airplane"),
    ("motorbike", "motorcycle"),
    ("sofa", "couch"),
    ("tvmonitor", "tv"),
    ("pavement", "sidewalk"),
    ("sign", "trafficsign"),
    ("bicyclist", "cyclist"),
)
ALIASES = {name: group[0] for group in SAME for name in group}
NATURAL = {  # joined spellings of the label files, as words; names of one word stay
    "diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor",
    "trafficlight": "traffic light", "firehydrant": "fire hydrant", "stopsign": "stop sign",
    "parkingmeter": "parking meter", "sportsball": "sports ball", "baseballbat": "baseball bat",
    "baseballglove": "baseball glove", "tennisracket": "tennis racket", "wineglass": "wine glass", "hotdog": "hot dog",
    "cellphone": "cell phone", "teddybear": "teddy bear", "hairdrier": "hair drier",
}  # fmt: skip
SPELLINGS = ("joined", "natural")


def joined(name: str) -> str:
    """`Dining Table`, `dining-table` -> `diningtable`."""
    return "".join(letter for letter in name.lower() if letter not in " -_")


def canonical(name: str) -> str:
    """One spelling for all names of a class: joined, and the first of its synonyms."""
    return ALIASES.get(joined(name), joined(name))


def spell(name: str, spelling: str) -> str:
    """The name as it goes into a prompt: `joined` or `natural`. ValueError for another spelling."""
    if spelling not in SPELLINGS:
        raise ValueError(f"spelling {spelling!r} is not known; allowed: {', '.join(SPELLINGS)}")
    return joined(name) if spelling == "joined" else NATURAL.get(joined(name), name)


def find_name(wanted: str, known: Sequence[str]) -> int | None:
    """Index of the name in `known`: the very same first, then another spelling, then a synonym; None without any."""
    for same in (str, joined, canonical):
        keys = [same(name) for name in known]
        if same(wanted) in keys:
            return keys.index(same(wanted))
    return None


def nearest_names(wanted: str, known: Sequence[str]) -> list[str]:
    """At most three known names that are spelt most alike, best first; perhaps none."""
    by_key = {joined(name): name for name in known}
    return [by_key[key] for key in difflib.get_close_matches(joined(wanted), list(by_key), SHOWN, 0.5)]
