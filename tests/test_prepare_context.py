"""tools/prepare_pascal_context.py: both annotations give the same labels, and never mix in one folder."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from src.data import published
from src.data.classes import read_classes
from src.data.published import pascal_context
from src.data.reading import read_item
from tests.layouts import SIZE, save_photo, write_lines
from tests.test_prepare import NAMES, prepare, repeat, state


@pytest.fixture
def context(tmp_path) -> Path:
    """VOC 2010 with both annotations of the same labels: 0, 2 (aeroplane) and 458 (wood) in columns."""
    voc_2010, ids = tmp_path / "voc", [0, 2, 458, 17]
    (tmp_path / "masks").mkdir()
    images, regions = [], []
    for number, (split, name) in enumerate((("train", NAMES[2]), ("val", NAMES[3]))):
        write_lines(voc_2010 / "ImageSets" / "Main" / f"{split}.txt", [name])
        save_photo(voc_2010 / "JPEGImages" / f"{name}.jpg")
        label = np.resize(np.array(ids, np.uint16), SIZE[1])[None].repeat(SIZE[0], axis=0)
        savemat(tmp_path / "masks" / f"{name}.mat", {"LabelMap": label})
        images.append({"image_id": number, "file_name": f"{name}.jpg", "phase": split, "height": 6, "width": 8})
        for k, category in ((1, 2), (2, 458)):
            runs = {"counts": [6 * k, 6, 18, 6, 6 * (3 - k)], "size": [6, 8]}
            regions.append({"image_id": number, "category_id": category, "segmentation": runs, "area": 12})
    images.append({"image_id": 9, "file_name": "2008_000001.jpg", "phase": "test", "height": 6, "width": 8})
    (tmp_path / "detail.json").write_text(json.dumps({"images": images, "annos_segmentation": regions}))
    return tmp_path


@pytest.mark.parametrize("form", ["--masks", "--json"])
def test_pascal_context(context, form, monkeypatch):
    annotation = context / ("masks" if form == "--masks" else "detail.json")
    arguments = ("--voc", context / "voc", form, annotation, "--output", context / "out", "--subset")
    prepare("prepare_pascal_context", monkeypatch, *arguments)
    for split, name in (("train", NAMES[2]), ("val", NAMES[3])):
        [item] = pascal_context(str(context / "voc"), split, prepared=str(context / "out"), complete=False)
        assert item.name == name
        with_background, without = (
            read_item(item, read_classes(f"pascal_context_{k}").table)["label"][0].tolist() for k in (60, 59)
        )
        assert with_background == [0, 1, 59, 0] * 2 and without == [255, 0, 58, 255] * 2
    repeat("prepare_pascal_context", monkeypatch, context / "out", context / "voc", *arguments)


def test_pascal_context_counts_and_errors(context, monkeypatch):
    for form, annotation, count in (("--masks", "masks", 4998), ("--json", "detail.json", 4996)):
        with pytest.raises(ValueError, match=rf"found 1 images of the split train, published are {count}"):
            prepare("prepare_pascal_context", monkeypatch, "--voc", context / "voc", form, context / annotation)
    (context / "detail.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"is no detail annotation \(KeyError\('annos_segmentation'\)\)"):
        prepare("prepare_pascal_context", monkeypatch, "--voc", context / "voc", "--json", context / "detail.json")
    assert published.PASCAL_CONTEXT["train"] == (4998, 4996)


def test_two_sources_do_not_mix_in_one_folder(context, monkeypatch):
    forms = {"--masks": context / "masks", "--json": context / "detail.json"}
    common = ("--voc", context / "voc", "--output", context / "out", "--subset")
    labels = context / "out" / "SegmentationClassContext"
    for first, second in (("--masks", "--json"), ("--json", "--masks")):
        prepare("prepare_pascal_context", monkeypatch, *common, first, forms[first])
        before = state(context / "out")
        with pytest.raises(ValueError, match=rf"was made from .*\({first}\), this run reads .*\({second}\).*--output"):
            prepare("prepare_pascal_context", monkeypatch, *common, second, forms[second])
        assert state(context / "out") == before
        for mask in labels.glob("*.png"):  # and once they are gone, either will do
            mask.unlink()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4, 5, 6]], "'segmentation' holds polygons in place of run lengths"),
        ({"size": [6, 8]}, "'segmentation' holds no counts and size"),
        ({"counts": [6.5, 41.5], "size": [6, 8]}, r"'counts' of run lengths are a list of integers or text, not \[6.5"),
        ({"counts": [48], "size": 6}, "cover 48 pixels, the image has 6 x 8"),
    ],
)
def test_regions_of_another_form_are_named(context, segmentation, message, monkeypatch):
    content = json.loads((context / "detail.json").read_text())
    content["annos_segmentation"][0]["segmentation"] = segmentation
    (context / "detail.json").write_text(json.dumps(content))
    arguments = ("--voc", context / "voc", "--json", context / "detail.json", "--output", context / "out", "--subset")
    with pytest.raises(ValueError, match=rf"detail.json, regions of 2008_000002: .*{message}"):
        prepare("prepare_pascal_context", monkeypatch, *arguments)
