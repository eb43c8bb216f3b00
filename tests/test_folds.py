"""PASCAL-5i and COCO-20i: lists in the published form, which classes a label keeps, counts."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from src.config import DataConfig
from src.data import load_classes, load_items
from src.data.classes import read_classes
from src.data.folds import COCO_COUNTS, PASCAL_COUNTS, coco_20i, coco_classes_of_fold, pascal_5i, pascal_classes_of_fold
from src.data.reading import read_item
from tests.layouts import save_mask, save_photo, write_lines

# Lists of the four folds: image and class, from 1. Image a shows classes 1 and 6, so fold 0 and fold 1 list it.
TRAINING = {0: ["a__1", "b__5"], 1: ["a__6", "c__10"], 2: ["d__11"], 3: ["d__20"]}
VALIDATION = {0: ["v__2", "w__3"], 1: ["v__7"], 2: ["x__15"], 3: ["x__16", "x__20"]}
SHOWN = {"a": [0, 1, 6, 255], "b": [0, 5], "c": [0, 10], "d": [0, 11, 20], "v": [0, 2, 7], "w": [3], "x": [15, 16, 20]}


def write_pascal(root: Path) -> None:
    for part, lists in (("trn", TRAINING), ("val", VALIDATION)):
        for fold, lines in lists.items():
            write_lines(root / "splits" / "pascal" / part / f"fold{fold}.txt", lines)
    for name, values in SHOWN.items():
        save_photo(root / "JPEGImages" / f"{name}.jpg")
        save_mask(root / "SegmentationClassAug" / f"{name}.png", values, read_classes("voc_2012").palette)


def write_coco(root: Path) -> None:
    """Classes from 0 in the lists and from 1 in the masks; fold f does not see f, f + 4, ..., f + 76."""
    images = {"train2014/COCO_train2014_01": [0, 1, 2], "val2014/COCO_val2014_02": [0, 1, 5, 80, 255]}
    for name, values in images.items():
        save_photo(root / f"{name}.jpg")
        save_mask(root / "annotations" / f"{name}.png", values)
    train, val = (f"{name}.jpg" for name in images)
    for part, lists in (
        ("trn", {0: {1: [train]}, 1: {0: [train], 2: []}, 2: {}, 3: {}}),
        ("val", {0: {0: [val], 4: [val], 8: []}, 1: {}, 2: {}, 3: {79: [val]}}),
    ):
        (root / "splits" / "coco" / part).mkdir(parents=True)
        for fold, content in lists.items():
            (root / "splits" / "coco" / part / f"fold{fold}.pkl").write_bytes(pickle.dumps(content))


@pytest.fixture
def pascal(tmp_path) -> str:
    write_pascal(tmp_path)
    return str(tmp_path)


@pytest.fixture
def coco(tmp_path) -> str:
    write_coco(tmp_path)
    return str(tmp_path)


def shown(item) -> set[int]:
    return set(np.unique(read_item(item, read_classes("voc_2012").table)["label"]).tolist())


def test_folds_share_the_classes_between_them():
    assert [sorted(pascal_classes_of_fold(i)) for i in (0, 3)] == [[1, 2, 3, 4, 5], [16, 17, 18, 19, 20]]
    names = read_classes("voc_2012").names
    last = [names[k] for k in sorted(pascal_classes_of_fold(3))]
    assert last == ["pottedplant", "sheep", "sofa", "train", "tvmonitor"]
    assert sorted(coco_classes_of_fold(1))[:3] == [2, 6, 10] and max(coco_classes_of_fold(1)) == 78
    for classes_of, count in ((pascal_classes_of_fold, 20), (coco_classes_of_fold, 80)):
        assert sorted(k for fold in range(4) for k in classes_of(fold)) == list(range(1, count + 1))


def test_training_takes_the_other_folds_and_hides_the_unseen(pascal):
    items = pascal_5i(pascal, "train", fold=0, complete=False)
    assert [item.name for item in items] == ["a", "c", "d"]  # a: for class 6 of fold 1
    assert [shown(item) for item in items] == [{0, 6, 255}, {0, 10}, {0, 11, 20}]
    label = read_item(items[0], {})["label"]  # unseen pixels are ignored: no negatives
    assert (label[0, :4] == [0, 255, 6, 255]).all()
    label = read_item(pascal_5i(pascal, "train", fold=0, others="background", complete=False)[0], {})["label"]
    assert (label[0, :4] == [0, 0, 6, 255]).all()
    assert shown(pascal_5i(pascal, "train", fold=0, others="keep", complete=False)[0]) == {0, 1, 6, 255}
    assert [item.name for item in pascal_5i(pascal, "train", fold=0, drop_unseen=True, complete=False)] == ["c", "d"]


def test_pairs_ask_for_one_class_each(pascal):
    items = pascal_5i(pascal, "val", fold=3, samples="pairs", complete=False)
    assert [(item.name, item.category) for item in items] == [("x", 16), ("x", 20)]
    assert [shown(item) for item in items] == [{0, 16}, {0, 20}]
    [item] = pascal_5i(pascal, "val", fold=3, complete=False)
    assert item.category is None and shown(item) == {16, 20, 255}
    train = pascal_5i(pascal, "train", fold=2, samples="pairs", complete=False)
    assert [(item.name, item.category) for item in train] == [("a", 1), ("b", 5), ("a", 6), ("c", 10), ("d", 20)]


def test_coco_lists(coco):
    [item] = coco_20i(coco, "train", fold=0, complete=False)
    assert item.name == "train2014/COCO_train2014_01" and shown(item) == {0, 2, 255}
    with pytest.raises(ValueError, match="drop_unseen leaves none of 1 items"):  # it shows class 1, too
        coco_20i(coco, "train", fold=0, drop_unseen=True, complete=False)
    for split, fold in (("val", 1), ("train", 3)):
        with pytest.raises(ValueError, match="names no image for this fold; copy the published lists again"):
            coco_20i(coco, split, fold=fold, complete=False)
    pairs = coco_20i(coco, "val", fold=0, samples="pairs", complete=False)
    assert [(item.category, shown(item)) for item in pairs] == [(1, {0, 1, 255}), (5, {0, 5, 255})]
    [item] = coco_20i(coco, "val", fold=3, complete=False)
    assert shown(item) == {0, 80, 255}


def test_counts_are_those_of_the_published_lists(pascal, coco):
    assert sum(PASCAL_COUNTS["val", "pairs"]) == 1868 and PASCAL_COUNTS["train", "pairs"][0] == 11394
    # every list of training pairs is in three of the four sums: 2286 + 3425 + 5883 + 2086 lines in all
    assert sum(PASCAL_COUNTS["train", "pairs"]) == 3 * (2286 + 3425 + 5883 + 2086)
    assert COCO_COUNTS["val", "images"] == (26052, 15305, 13138, 12640)
    with pytest.raises(ValueError, match=r"'val' of pascal_5i \(fold 1, pairs\) has 1 items here, published are 451"):
        pascal_5i(pascal, "val", fold=1, samples="pairs")
    with pytest.raises(ValueError, match=r"of coco_20i \(fold 0, images\) has 1 items here, published are 62040"):
        coco_20i(coco, "train", fold=0)


def test_wrong_folds_and_lists(pascal, coco):
    data = DataConfig(dataset="pascal_5i", root=pascal, crop_size=(4, 4), options={"complete": False})
    with pytest.raises(ValueError, match="missing argument 'fold'"):
        load_items(data, "train")
    assert len(load_classes(data)) == 21
    with pytest.raises(ValueError, match=r"fold is 4; pascal_5i has the folds 0..3"):
        pascal_5i(pascal, "train", fold=4)
    lists = Path(pascal) / "splits" / "pascal" / "val"
    write_lines(lists / "fold0.txt", ["v__7"])
    with pytest.raises(ValueError, match=r"for the classes \[7\], which do not belong to this fold"):
        pascal_5i(pascal, "val", fold=0)
    write_lines(lists / "fold0.txt", ["v 7"])
    with pytest.raises(ValueError, match=r"fold0.txt:1: 'v 7' is not of the form"):
        pascal_5i(pascal, "val", fold=0)
    (lists / "fold2.txt").unlink()
    with pytest.raises(FileNotFoundError, match="fold0|fold2.txt does not exist"):
        write_lines(lists / "fold0.txt", ["v__2"])
        pascal_5i(pascal, "val", fold=0)


class _Touch:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_that_runs_something_is_refused(coco, tmp_path):
    trap = tmp_path / "trap"
    path = Path(coco) / "splits" / "coco" / "trn" / "fold0.pkl"
    path.write_bytes(pickle.dumps({1: [_Touch(trap)]}))
    with pytest.raises(ValueError, match=r"fold0.pkl is refused: it names"):
        coco_20i(coco, "train", fold=0)
    assert not trap.exists()
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="does not hold a dict of class"):
        coco_20i(coco, "train", fold=0)
    for images, shown_as in ((5, "5"), ([5], r"\[5\]"), ("abc", "abc")):
        path.write_bytes(pickle.dumps({1: images}))
        with pytest.raises(ValueError, match=rf"fold0.pkl holds {shown_as} for class 1 in place of a list of paths"):
            coco_20i(coco, "train", fold=0)
    path.write_bytes(b"\x80\x02}]K\x01s.")  # a dict with a list as a key
    with pytest.raises(ValueError, match="fold0.pkl is refused"):
        coco_20i(coco, "train", fold=0)
