"""Values in label files that mean something else than the table of the data set says.

K is the number of classes. Names of the conventions: `one-based` 1..K are the classes, `zero-based` 0..K-1 are;
`stretched` values are spread over 0..255 to be seen.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from src.constants import IGNORE
from src.data.classes import Classes
from src.doctor.census import NAMED, Census, short
from src.doctor.finding import ERROR, WARNING, Finding, name_some

Table = dict[int, int]
IGNORE_16_BIT = 65535
MANY_VALUES = 16  # outside the table: more are no classes that were forgotten
MOST = 0.5  # share of the pixels outside the table from which on the labels are not those of this data set
PLAIN_NAME = r"[A-Za-z_][\w-]*(?: [\w-]+)*"
YAML_WORDS = ("true", "false", "null", "True", "False", "Null", "TRUE", "FALSE", "NULL")


def findings(
    censuses: Sequence[Census], classes: Classes, place: str | None, complete: bool = True
) -> list[Finding]:  # fmt: skip
    """What all splits together say of the convention.

    place: the file that holds the table, None for a fixed one. complete: whether all masks were read; what only the
    absence of a value tells is no error otherwise. Splits with a table of their own, as scribbles have, follow none of
    the conventions.
    """
    censuses = [census for census in censuses if not census.own_table]
    seen = {value for census in censuses for value in census.pixels}
    if not seen:
        return colours(censuses, classes)
    outside = sorted({value for census in censuses for value in census.unknown})
    holders = [file for census in censuses for value in outside for file in census.holders.get(value, [])]
    if outside:
        pixels = sum((census.pixels for census in censuses), Counter())
        found = recognise(pixels, outside, classes, place, list(dict.fromkeys(holders)))
    else:
        found = suspect(censuses, seen, classes, place, complete)
    return found + colours(censuses, classes) + shown_as_others(censuses, classes)


def recognise(
    pixels: Counter, outside: list[int], classes: Classes, place: str | None, holders: list[str]
) -> list[Finding]:
    """The convention that explains values outside the table, if one does; else what they look like."""
    seen, where = set(pixels), tuple(holders[:NAMED])
    for code, text, table in conventions(seen, classes):
        if seen <= table.keys():
            named = f"{text} Values found: {some_values(seen)}; first seen in {name_some([short(f) for f in holders])}"
            return [Finding(code, ERROR, named, where, mend(table, classes, place))]
    share = sum(pixels[value] for value in outside) / sum(pixels.values())
    text = (
        f"{len(outside)} different values, {share:.1%} of the pixels, are outside the table "
        f"({some_values(set(outside))}), first seen in {name_some([short(f) for f in holders])}: "
    )
    if share > MOST:
        text += "these do not look like labels of this data set's classes"
        advice = "see whether the folder holds other labels: instances, depths, more classes, the photos in grey"
        return [Finding("labels_foreign", ERROR, text, where, advice)]
    if len(outside) > MANY_VALUES:
        text += "the labels look resized with interpolation, or were a JPEG once"
        advice = "export the labels anew, resized with the nearest neighbour only, as PNG"
        return [Finding("labels_interpolated", ERROR, text, where, advice)]
    return []


def conventions(seen: set[int], classes: Classes) -> Iterator[tuple[str, str, Table]]:
    """(code, text, table) of the conventions that are known, the likeliest first."""
    count = len(classes)
    zero_based = {k: k for k in range(count)}
    if expects_one_based(classes) and IGNORE not in classes.table and {0, IGNORE} <= seen and count not in seen:
        text = (
            "The labels look zero-based, as after 0 was made 255 and all else lowered by one: 255 marks no label, as "
            f"0 does in the table, and {count} never occurs. If 0 is no label here either and class "
            f"{classes.names[-1]!r} merely does not occur, add 255: ignore to the table instead."
        )
        yield "labels_zero_based", text, {**zero_based, IGNORE: IGNORE}
    voids = {value: IGNORE for value in (IGNORE, IGNORE_16_BIT) if value in seen and value not in classes.table}
    if voids:
        text = f"The table does not say what {' and '.join(map(str, voids))} stands for; it mostly marks no label."
        yield "ignore_value", text, {**classes.table, **voids}
    ignored = {value: IGNORE for value in (IGNORE, IGNORE_16_BIT) if value in seen or value == IGNORE}
    if count in seen:
        zero = " 0 is taken as unlabelled; if it is a class, a name is missing instead." if 0 in seen else ""
        text = f"The labels look one-based: 1..{count} for {count} classes, where 0..{count - 1} is expected.{zero}"
        yield "labels_one_based", text, {0: IGNORE, **{k + 1: k for k in range(count)}, **ignored}
    if 0 in seen:
        text = f"The labels look zero-based: 0..{count - 1} for {count} classes, which is not what the table expects."
        yield "labels_zero_based", text, {**zero_based, **ignored}
    for table in stretched(count):
        if len(seen) > 1:
            void = {IGNORE: IGNORE} if IGNORE in seen - table.keys() else {}
            text = f"The labels look stretched over 0..255 to be seen: {some_values(set(table))} for {count} classes"
            yield "labels_0_255", f"{text}{', and 255 for no label' if void else ''}.", {**table, **void}
    text = "The labels look stretched from 8 to 16 bits: every index times 257."
    yield "labels_16_bit", text, {**{257 * k: k for k in range(count)}, IGNORE_16_BIT: IGNORE}


def stretched(count: int) -> list[Table]:
    """Tables of indices spread over 0..255 in the usual ways: rounded and whole steps, the last index at 255 or below.

    Below, 255 may be left for pixels without a label.
    """
    if count < 2:
        return []
    steps = [
        [step(k, parts) for k in range(count)]
        for parts in (count - 1, count)
        for step in (lambda k, n: round(k * 255 / n), lambda k, n: k * (255 // n), lambda k, n: k * 255 // n)
    ]
    return [{value: k for k, value in enumerate(values)} for values in steps if len(set(values)) == count]


def expects_one_based(classes: Classes) -> bool:
    """Whether the table says that 1..K are the classes and 0 is no label."""
    one_based = {k + 1: k for k in range(len(classes))}
    return one_based.items() <= classes.table.items() and classes.table.get(0) == IGNORE


def suspect(
    censuses: Sequence[Census], seen: set[int], classes: Classes, place: str | None, complete: bool
) -> list[Finding]:  # fmt: skip
    """Conventions that fit into the table and are silently wrong.

    Shifted values are suspected only where every class but the outermost occurs, and where all masks were read or 255
    occurs beside 0: of many classes, a few images lack the last one often enough.
    """
    count, table = len(classes), classes.table
    files = name_some([short(file) for census in censuses for file in census.holders.get(max(seen), [])[:2]])
    if count == 2 and seen == {0, IGNORE} and table[0] != IGNORE and table[IGNORE] == IGNORE:
        text = (
            f"The labels hold nothing but 0 and 255, as masks drawn in black and white do: class {classes.names[1]!r} "
            f"never occurs, and 255 is ignored, in {files}."
        )
        severity, lines = ERROR if complete else WARNING, mend({0: 0, IGNORE: 1}, classes, place)
        return [Finding("labels_0_255", severity, text, (), lines)]
    zero_based = {k: k for k in range(count)}
    missing_last = expects_one_based(classes) and count > 1 and count not in seen and set(range(count)) <= seen
    if missing_last and (complete or IGNORE in seen):
        text = (
            f"The labels may be zero-based: {some_values(seen)} occur, {count} never does, so that class "
            f"{classes.names[-1]!r} is without a pixel and 0 is ignored, in {files}."
        )
        return [Finding("labels_zero_based", WARNING, text, (), mend({**zero_based, IGNORE: IGNORE}, classes, place))]
    expects_zero = zero_based.items() <= table.items() and table.get(count) == IGNORE
    if complete and expects_zero and 0 not in seen and set(range(1, count + 1)) <= seen:
        text = (
            f"The labels may be one-based: {some_values(seen)} occur, 0 never does, so that class "
            f"{classes.names[0]!r} is without a pixel and {count} is ignored, in {files}."
        )
        other = {0: IGNORE, **{k + 1: k for k in range(count)}, IGNORE: IGNORE}
        return [Finding("labels_one_based", WARNING, text, (), mend(other, classes, place))]
    return []


def colours(censuses: Sequence[Census], classes: Classes) -> list[Finding]:
    """Colour masks whose colours are those of the palette."""
    seen = {colour for census in censuses for colour in census.colours}
    names = dict(zip(classes.palette, classes.names, strict=True))
    known = [colour for colour in sorted(seen) if colour in names]
    if not known or len(known) < len(seen) - 1:  # one more stands for no label
        return []
    pairs = ", ".join(f"{colour} {names[colour]}" for colour in known[:8])
    text = f"The colours of the colour masks are those of the palette: {pairs}"
    return [Finding("mask_palette_colours", WARNING, text, (), "save the index of each colour instead of the colour")]


def shown_as_others(censuses: Sequence[Census], classes: Classes) -> list[Finding]:
    """Palette masks that show an index in the colour of another class, as a conversion from colours leaves them."""
    ids = {colour: k for k, colour in enumerate(classes.palette)}
    entries = {entry: file for census in reversed(censuses) for entry, file in census.shown.items()}
    meant = {entry: file for entry, file in entries.items() if classes.table.get(entry[0], IGNORE) != IGNORE}
    wrong = {entry: file for entry, file in meant.items() if ids.get(entry[1]) != classes.table[entry[0]]}
    if not wrong or any(colour not in ids for _, colour in meant):
        return []
    told = [
        f"{value} shows the colour of {classes.names[ids[colour]]!r} but stands for "
        f"{classes.names[classes.table[value]]!r} in {short(file)}"
        for (value, colour), file in list(wrong.items())[:5]
    ]
    text = f"Indices of palette masks are shown in other classes' colours: {'; '.join(told)}"
    advice = "export the masks with the data set's order of classes, or correct the order of names and palette"
    return [Finding("mask_palette_order", WARNING, text, tuple(dict.fromkeys(wrong.values()))[:NAMED], advice)]


def some_values(values: set[int], shown: int = 12) -> str:
    """`0..3, 255` of a set of values."""
    parts: list[list[int]] = []
    for value in sorted(values):
        if parts and value == parts[-1][1] + 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    texts = [str(low) if low == high else f"{low}..{high}" for low, high in parts]
    return ", ".join(texts[:shown]) + (f" and {len(texts) - shown} more" if len(texts) > shown else "")


def mend(table: Table, classes: Classes, place: str | None) -> str:
    """The lines that make the table fit; for a fixed table, all of a classes.yaml."""
    line = f"table: {{{', '.join(f'{value}: {quote(name_of(k, classes))}' for value, k in sorted(table.items()))}}}"
    if place is not None:
        return f"if that is so, write into {place} in place of its table:\n{line}"
    return (
        "the table of this data set is fixed: bring the labels into their published form, or read them as "
        "data.dataset=folder (images/SPLIT, labels/SPLIT) with classes.yaml holding\n"
        f"names: [{', '.join(map(quote, classes.names))}]\n{line}"
    )


def name_of(k: int, classes: Classes) -> str:
    return "ignore" if k == IGNORE else classes.names[k]


def quote(name: str) -> str:
    """A name as it can stand in a line of YAML."""
    plain = re.fullmatch(PLAIN_NAME, name, re.ASCII) and name not in YAML_WORDS
    return name if plain else json.dumps(name, ensure_ascii=False)
