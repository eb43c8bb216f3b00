"""Names, palettes and label tables of the published data sets, against other sources and rules than they came from."""

import json

import numpy as np
import pytest

from src.constants import IGNORE
from src.data.classes import TABLES, read_classes
from src.data.label_forms import CONTEXT_IDS, SCRIBBLE_TAGS, VOC_SPELLINGS
from src.data.reading import to_class_ids

COUNTS = {
    "ade20k": 150, "cityscapes": 19, "coco_20i": 81, "coco_stuff_10k": 171, "loveda": 7, "pascal_context_59": 59,
    "pascal_context_60": 60, "voc_2012": 21,
}  # fmt: skip
ABSENT_OBJECTS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}  # numbers that COCO gave to no object


def test_every_table_is_known_here():
    assert sorted(path.stem for path in TABLES.glob("*.txt")) == sorted(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_every_class_has_one_value_and_a_source(name):
    classes = read_classes(name)
    assert len(classes) == len(classes.palette) == len(set(classes.names)) == COUNTS[name]
    ids = [k for k in classes.table.values() if k != IGNORE]
    assert sorted(ids) == list(range(len(classes)))
    assert all(0 <= part <= 255 for colour in classes.palette for part in colour)
    assert "# Facts as in " in (TABLES / f"{name}.txt").read_text()


@pytest.mark.parametrize(
    ("name", "names", "first"),
    [
        ("ade20k", "ade_single", 0), ("cityscapes", "cityscapes_single", 0), ("voc_2012", "voc12_wbg_single", 0),
        ("coco_20i", "coco_single", 0), ("pascal_context_59", "context60_multi", 1),
    ],
)  # fmt: skip
def test_names_agree_with_another_source(name, names, first, data_root):
    """The names beside the text embeddings were collected by others; only spaces may differ."""
    lists = json.loads((data_root / "clip_text_embeddings" / "class_names.json").read_text())["classes"]
    theirs = [text.strip().replace(" ", "") for text in lists[names][first:]]
    ours = [text.replace(" ", "") for text in read_classes(name).names]
    differing = [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]]
    assert differing == []


def test_voc_palette_is_the_published_formula():
    """The colour of value v collects its bits three at a time, from the highest of each channel down."""
    for value, colour in enumerate(read_classes("voc_2012").palette):
        wanted = [0, 0, 0]
        for step in range(8):
            for channel in range(3):
                wanted[channel] |= (value >> (3 * step + channel) & 1) << (7 - step)
        assert colour == tuple(wanted)


def test_cityscapes_table():
    """The ids of the 19 classes that the benchmark evaluates, in the order of their train ids; 0..33 are in use."""
    classes = read_classes("cityscapes")
    evaluated = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert {v: k for v, k in classes.table.items() if k != IGNORE} == {v: k for k, v in enumerate(evaluated)}
    assert sorted(classes.table) == list(range(34))
    assert classes.names[0] == "road" and classes.palette[0] == (128, 64, 128) and classes.names[18] == "bicycle"


def test_coco_stuff_values_have_the_gaps_of_coco():
    table = read_classes("coco_stuff_10k").table
    assert set(range(183)) - table.keys() == ABSENT_OBJECTS and table[0] == IGNORE
    names = read_classes("coco_stuff_10k").names
    assert [names[table[v]] for v in (1, 13, 90, 92, 182)] == ["person", "stop sign", "toothbrush", "banner", "wood"]
    assert read_classes("coco_20i").names[1:] == names[:80]


def test_pascal_context_tables_differ_in_background_alone():
    with_background, without = read_classes("pascal_context_60"), read_classes("pascal_context_59")
    assert with_background.names == ("background", *without.names)
    assert with_background.palette[1:] == without.palette
    assert with_background.table == {v: v for v in range(60)}
    assert without.table == {0: IGNORE, **{v: v - 1 for v in range(1, 60)}}
    assert len(set(CONTEXT_IDS)) == 59 and list(CONTEXT_IDS) == sorted(CONTEXT_IDS)
    assert list(without.names) == sorted(without.names)  # the 459 are in alphabetical order, so ids and names agree


def test_scribble_tags_stand_for_the_classes_of_voc():
    spelt = {tag: name for name, tag in VOC_SPELLINGS.items()}
    assert tuple(spelt.get(tag, tag) for tag in SCRIBBLE_TAGS) == read_classes("voc_2012").names


@pytest.mark.parametrize(("name", "unknown"), [("ade20k", 151), ("ade20k", 255), ("loveda", 8), ("cityscapes", 34),
                                               ("coco_stuff_10k", 12), ("pascal_context_59", 60), ("voc_2012", 21)])
def test_values_outside_a_table_are_errors(name, unknown):
    """No arithmetic on values: 0 does not wrap round to 255, and what is not listed is refused."""
    classes = read_classes(name)
    values = np.array([[next(iter(classes.table)), unknown]], np.uint8)
    with pytest.raises(ValueError, match=rf"values outside the table: {unknown} \(1 px\)"):
        to_class_ids(values, classes.table, "mask.png")


@pytest.mark.parametrize(("name", "value", "wanted"), [("ade20k", 0, 255), ("ade20k", 1, 0), ("ade20k", 150, 149),
                                                       ("loveda", 0, 255), ("loveda", 7, 6), ("voc_2012", 255, 255),
                                                       ("pascal_context_59", 0, 255), ("pascal_context_60", 0, 0)])
def test_values_at_the_ends(name, value, wanted):
    assert to_class_ids(np.array([[value]], np.uint8), read_classes(name).table, "mask.png")[0, 0] == wanted
