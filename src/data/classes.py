"""What the ids of a label map mean: names, colours and the values that stand for them in label files.

K is the number of classes; ids are 0 .. K-1, and IGNORE marks pixels without a label.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from src.constants import IGNORE

MAX_CLASSES = 255  # ids 0..254 fit a uint8 label beside IGNORE
TABLES = Path(__file__).parent / "tables"

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Classes:
    """The classes of a data set.

    names: K names; palette: K colours (R, G, B), 0..255; table: value in a label file -> class id or IGNORE. A value
    that the table does not hold is an error when the file is read.
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    table: dict[int, int]

    def __len__(self) -> int:
        return len(self.names)


def identity_table(num_classes: int) -> dict[int, int]:
    """Label files that hold class ids already, and IGNORE where there is no label."""
    return {**{value: value for value in range(num_classes)}, IGNORE: IGNORE}


@cache
def read_classes(name: str) -> Classes:
    """The published classes of a data set, from tables/<name>.txt.

    A line is `value red green blue name`, or `value ignore` and what it stands for; `value` is what label files hold.
    The class ids count the lines with a name, from 0. `#` starts a comment.
    """
    names, palette, table = [], [], {}
    for line in (TABLES / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        value, *fields = line.split(maxsplit=4)
        if fields[0] == "ignore":
            table[int(value)] = IGNORE
        else:
            red, green, blue, title = fields
            table[int(value)] = len(names)
            names.append(title)
            palette.append((int(red), int(green), int(blue)))
    return Classes(tuple(names), tuple(palette), table)


def without(classes: Classes, unseen: Sequence[str]) -> Classes:
    """The classes with some left out: their values mean IGNORE, the others are numbered anew in their order.

    Raises ValueError for names of no class, and where nothing is left.
    """
    unknown = [name for name in unseen if name not in classes.names]
    if unknown or set(unseen) == set(classes.names):
        what = f"{', '.join(map(repr, unknown))}: no such class" if unknown else "no class is left"
        raise ValueError(f"data.unseen {what}; the data set has {', '.join(classes.names)}")
    kept = [k for k, name in enumerate(classes.names) if name not in unseen]
    ids = {k: i for i, k in enumerate(kept)}
    return Classes(
        tuple(classes.names[k] for k in kept), tuple(classes.palette[k] for k in kept),
        {value: ids.get(k, IGNORE) for value, k in classes.table.items()},
    )  # fmt: skip


def generate_palette(num_classes: int) -> tuple[Colour, ...]:
    """K different colours (R, G, B): hues one golden section apart, in three steps of saturation and brightness."""
    golden = (5**0.5 - 1) / 2
    tones = ((0.75, 0.85), (0.55, 0.65), (0.40, 1.00))
    colours = []
    for k in range(num_classes):
        red, green, blue = colorsys.hsv_to_rgb((k * golden) % 1.0, *tones[k % len(tones)])
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return tuple(colours)


CAMVID = Classes(  # SegNet split; the order is the id in the label files, 11 is unlabelled (README of the data set)
    names=(
        "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
    ),
    palette=(
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
        (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
    table={**{value: value for value in range(11)}, 11: IGNORE},
)  # fmt: skip
