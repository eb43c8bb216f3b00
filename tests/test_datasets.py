"""Data sets: pairing, classes.yaml, splits and options, and what each kind of bad input says."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from src.config import DataConfig
from src.data import create_eval_samples, create_train_batches, load_classes, load_items
from src.data.classes import CAMVID, generate_palette
from src.data.datasets import camvid, toy_scenes
from src.data.folder import folder, folder_classes
from src.data.reading import SceneItem, read_item, read_mask

ROOT = Path(__file__).resolve().parents[1]
CAMVID_ROOT = Path(os.environ.get("ECENET_DATA") or ROOT.parent / "shared" / "data") / "camvid_480x360"
needs_camvid = pytest.mark.skipif(not CAMVID_ROOT.is_dir(), reason=f"no CamVid at {CAMVID_ROOT}; set ECENET_DATA")

CLASSES = "{names: [road, sky], palette: [[128,64,128],[70,130,180]], table: {0: road, 7: sky, 255: ignore}}"
PHOTO = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
MASK = np.array([[0, 7, 255, 0]] * 6, np.uint8).repeat(2, axis=1)  # (6, 8)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def data(tmp_path) -> Path:
    """Two pairs in train, one of them nested, and one in val."""
    for name in ("train/b", "train/town/a", "val/c"):
        save(tmp_path / "images" / f"{name}.png", PHOTO)
        save(tmp_path / "labels" / f"{name}.png", MASK)
    (tmp_path / "classes.yaml").write_text(CLASSES)
    return tmp_path


def config(root: Path | None, dataset: str = "folder", **settings) -> DataConfig:
    return DataConfig(dataset=dataset, root=None if root is None else str(root), crop_size=(4, 4), **settings)


def raises(kind: type[Exception], *parts: str):
    """The message holds all parts in this order."""
    return pytest.raises(kind, match="(?s)" + ".*".join(map(re.escape, parts)))


# --- folder ---------------------------------------------------------------------------------------------------------


def test_folder_pairs_by_name_and_reads_through_the_table(data):
    items = folder(str(data), "train")
    assert [item.name for item in items] == ["b", "town/a"]
    samples = create_eval_samples(config(data))
    assert len(samples) == 1
    [(name, sample)] = list(samples)
    assert name == "c" and sample.keys() == {"image", "label"}
    np.testing.assert_array_equal(sample["image"], PHOTO)  # RGB order kept
    np.testing.assert_array_equal(sample["label"], np.array([[0, 1, 255, 0]] * 6).repeat(2, axis=1))
    assert sample["label"].dtype == np.uint8


def test_eval_samples_are_shared_out_over_ranks(data):
    shares = [[name for name, _ in create_eval_samples(config(data, val_split="train"), r, 2)] for r in (0, 1)]
    assert shares == [["b"], ["town/a"]]


def test_missing_folders_name_path_remedy_and_splits(data, tmp_path):
    with raises(FileNotFoundError, "nowhere", "data.root", "ROOT/images/<split>"):
        load_items(config(tmp_path / "nowhere"), "train")
    with raises(FileNotFoundError, "images/test", "splits there: train, val", "data.train_split"):
        folder(str(data), "test")
    with raises(ValueError, "data.root"):
        folder(None, "train")


def test_unpaired_files_are_counted_with_examples(data):
    for name in "pqrs":
        save(data / "images" / "train" / f"{name}.jpg", PHOTO)
    save(data / "labels" / "train" / "z.png", MASK)
    with raises(ValueError, "4 images (p, q, r, ...) without a label", "1 label (z) without an image"):
        folder(str(data), "train")
    save(data / "labels" / "val" / "z.png", MASK)
    with raises(ValueError, "0 images without a label", "1 label (z) without an image"):
        folder(str(data), "val")


def test_two_files_of_one_name_cannot_be_paired(data):
    save(data / "images" / "train" / "b.jpg", PHOTO)
    with raises(ValueError, "b.jpg", "b.png", "one name"):
        folder(str(data), "train")


def test_empty_split(data):
    for kind in ("images", "labels"):
        (data / kind / "empty").mkdir()
        (data / kind / "empty" / "notes.txt").write_text("not an image")
    with raises(ValueError, "split 'empty'", "is empty", ".png"):
        folder(str(data), "empty")


def test_classes_file(data):
    classes = folder_classes(str(data))
    assert classes.names == ("road", "sky") and len(classes) == 2
    assert classes.palette == ((128, 64, 128), (70, 130, 180))
    assert classes.table == {0: 0, 7: 1, 255: 255}


def test_classes_file_defaults(data):
    (data / "classes.yaml").write_text("names: ['on', no, road]\n")  # YAML 1.2: no is a word
    classes = folder_classes(str(data))
    assert classes.names == ("on", "no", "road")
    assert classes.table == {0: 0, 1: 1, 2: 2, 255: 255}
    assert classes.palette == generate_palette(3)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("names: [road, road]", ("'names'", "'road' occurs 2 times")),
        ("names: [road, 3]", ("'names'", "3 is not a name", "quotes")),
        ("names: []", ("'names'", "list of class names")),
        ("names: [road, ignore]", ("'names'", "'ignore'")),
        (f"names: [{', '.join(f'c{k}' for k in range(256))}]", ("'names'", "256 classes", "255")),
        ("palette: []", ("'names' is missing",)),
        ("{names: [a], colours: []}", ("unknown key 'colours'", "names, palette, table")),
        ("{names: [a, b], palette: [[1,2,3]]}", ("'palette'", "2 names", "1 colours")),
        ("{names: [a], palette: [[1,2,256]]}", ("'palette'", "[1, 2, 256]", "0..255")),
        ("{names: [a], table: {0: b}}", ("'table'", "value 0", "'b'", "known: a, ignore")),
        ("{names: [a], table: {-1: a}}", ("'table'", "-1", "0..65535")),
        ("{names: [a, b], table: {0: a}}", ("'table'", "no value stands for b")),
        ("{names: [a], names: [b]}", ("not valid YAML", "names")),
    ],
)
def test_classes_file_errors_name_file_and_key(data, text, parts):
    (data / "classes.yaml").write_text(text)
    with raises(ValueError, "classes.yaml", *parts):
        load_classes(config(data))


def test_missing_classes_file(data):
    (data / "classes.yaml").unlink()
    with raises(FileNotFoundError, "classes.yaml", "names: [road, sky]"):
        load_classes(config(data))


def test_generated_palette_has_different_colours():
    palette = generate_palette(255)
    assert len(set(palette)) == 255 and all(0 <= part <= 255 for colour in palette for part in colour)


# --- camvid, toy scenes, options ------------------------------------------------------------------------------------


@needs_camvid
def test_camvid_splits_and_ids():
    train, val = camvid(str(CAMVID_ROOT), "train"), camvid(str(CAMVID_ROOT), "val")
    assert (len(train), len(val)) == (367, 101) and train[0].name == "0001TP_006690"  # the order of train.txt
    values = read_mask(train[0].label)
    sample = read_item(train[0], CAMVID.table)
    assert sample["image"].shape == (360, 480, 3) and values.max() == 11
    np.testing.assert_array_equal(sample["label"], np.where(values == 11, 255, values))


def test_camvid_errors(tmp_path, monkeypatch):
    monkeypatch.setenv("ECENET_DATA", str(tmp_path))
    with raises(FileNotFoundError, "camvid_480x360", "data.root", "ECENET_DATA"):
        camvid(None, "train")
    (tmp_path / "camvid_480x360").mkdir()
    listing = tmp_path / "camvid_480x360" / "train.txt"
    listing.write_text("")
    with raises(ValueError, "'train' is empty", "train.txt"):
        camvid(None, "train")
    listing.write_text("one\ntwo\n")
    with raises(FileNotFoundError, "4 files", "train.txt", "one.jpg"):
        camvid(None, "train")
    with raises(FileNotFoundError, "test.txt", "splits", "train"):
        camvid(None, "test")
    for name in ("one", "two"):
        save(tmp_path / "camvid_480x360" / "images" / "train" / f"{name}.jpg", PHOTO)
        save(tmp_path / "camvid_480x360" / "labels" / "train" / f"{name}.png", MASK)
    with raises(ValueError, "'train' of camvid has 2 items here, published are 367", "data.options.complete=false"):
        camvid(None, "train")
    assert len(camvid(None, "train", complete=False)) == 2


def test_toy_scenes_options_and_disjoint_splits():
    data = config(None, "toy_scenes", options={"train_count": 5, "val_count": 3, "size": [48, 64], "seed": 2})
    train, val = load_items(data, "train"), load_items(data, "val")
    assert (len(train), len(val)) == (5, 3)
    assert not {item.index for item in train} & {item.index for item in val}
    assert train[1] == SceneItem("scene_0000001", 2, 1, (48, 64))
    name, sample = create_eval_samples(data)[0]
    assert name == val[0].name and sample["image"].shape == (48, 64, 3)
    assert set(np.unique(sample["label"])) <= {*range(len(load_classes(data))), 255}


def test_toy_scenes_errors():
    with raises(ValueError, "no split 'test'", "train, val"):
        toy_scenes(None, "test")
    with raises(ValueError, "val_count is 0", "1..1000000"):
        toy_scenes(None, "val", val_count=0)
    with raises(ValueError, "size", "(0, 4)"):
        toy_scenes(None, "val", size=(0, 4))
    with raises(ValueError, "data.root is '/x'", "data.root=null"):
        toy_scenes("/x", "val")
    with raises(ValueError, "data.options (toy_scenes)", "'counts'", "train_count"):
        load_items(config(None, "toy_scenes", options={"counts": 3}), "train")
    with raises(ValueError, "unknown data set 'folders'", "folder"):
        load_classes(config(None, "folders"))


@pytest.mark.parametrize("name", ["camvid", "folder", "toy_scenes"])
def test_base_configs_are_data_settings(name):
    content = YAML(typ="safe", pure=True).load(ROOT / "config" / "_base_" / f"{name}.yaml")
    settings, evaluation = DataConfig(**content.pop("data")), content.pop("eval", None)
    assert settings.dataset == name and not content
    assert (evaluation is None) == (name != "camvid")
    if name == "toy_scenes":
        assert load_items(settings, "train")[0].size == settings.crop_size


# --- through the pipeline -------------------------------------------------------------------------------------------


def test_bad_file_reaches_the_training_loop_as_its_own_message(data):
    save(data / "labels" / "train" / "b.png", MASK + 1)
    batches = create_train_batches(
        config(data), max_classes=2, seed=0, rank=0, world_size=1, batch_size=2, first_sample=0, num_samples=8
    )
    with raises(ValueError, "label file", "labels/train/b.png", "allowed: 0, 7, 255") as caught:
        list(batches)
    assert str(caught.value).startswith("label file") and "Traceback" not in str(caught.value)
