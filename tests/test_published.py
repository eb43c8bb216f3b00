"""The published data sets, each on a few files in the layout and format in which it is published."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from src.config import DataConfig, EvalConfig, load_config
from src.data import DATASETS, create_eval_samples, load_classes, load_items
from src.data.classes import read_classes
from src.data.published import ADE20K, CITYSCAPES, COCO_STUFF, LOVEDA, PASCAL_CONTEXT
from src.data.reading import FileItem, read_item
from src.data.voc import SCRIBBLES, VOC_2012
from src.doctor.listing import list_split
from tests.conftest import ROOT
from tests.layouts import SIZE, save_mask, save_photo, write_lines, write_voc

PUBLISHED = sorted(set(DATASETS) - {"camvid", "folder", "toy_scenes"})
VOC = read_classes("voc_2012")


def write_ade20k(base: Path) -> None:
    for folder in ("training", "validation"):
        for k in (1, 2):
            name = f"ADE_{'train' if folder == 'training' else 'val'}_{k:08d}"
            save_photo(base / "images" / folder / f"{name}.jpg")
            save_mask(base / "annotations" / folder / f"{name}.png", [0, 1, 150])


def write_pascal_context(base: Path) -> None:
    for split, name in (("train", "2008_000002"), ("val", "2008_000003")):
        save_photo(base / "JPEGImages" / f"{name}.jpg")
        palette = read_classes("pascal_context_60").palette
        save_mask(base / "SegmentationClassContext" / f"{name}.png", [0, 1, 59], palette)
        write_lines(base / "ImageSets" / "SegmentationContext" / f"{split}.txt", [name])


def write_coco_stuff_10k(base: Path) -> None:
    for listing, name in (("train", "COCO_train2014_000000000077"), ("test", "COCO_train2014_000000000428")):
        save_photo(base / "images" / f"{name}.jpg")
        save_mask(base / "labels" / f"{name}.png", [0, 1, 182])
        write_lines(base / "imageLists" / f"{listing}.txt", [name])


def write_cityscapes(base: Path) -> None:
    for split, city in (("train", "aachen"), ("val", "frankfurt")):
        stem = f"{city}_000000_000019"
        save_photo(base / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
        fine = base / "gtFine" / split / city
        save_mask(fine / f"{stem}_gtFine_labelIds.png", [0, 7, 33])
        save_mask(fine / f"{stem}_gtFine_labelTrainIds.png", [255, 0, 18])
        save_mask(fine / f"{stem}_gtFine_instanceIds.png", [7])  # published beside them, not for us
        (fine / f"{stem}_gtFine_polygons.json").write_text("{}")


def write_loveda(base: Path) -> None:
    for folder in ("Train", "Val"):
        for k, area in enumerate(("Rural", "Urban")):
            save_photo(base / folder / area / "images_png" / f"{k}.png")
            save_mask(base / folder / area / "masks_png" / f"{k}.png", [0, 1, 7])


def write_voc_2012(base: Path) -> None:
    write_voc(base, {"train": ["2007_000032"], "val": ["2007_000033"]}, [0, 1, 255], VOC.palette)
    shutil.copytree(base / "SegmentationClass", base / "SegmentationClassAug")
    write_lines(base / "ImageSets" / "Segmentation" / "train_aug.txt", ["2007_000032"])


def write_voc_scribble(base: Path) -> None:
    write_voc_2012(base)
    save_mask(base / "pascal_2012_scribble" / "2007_000032.png", [255, 20, 255])
    save_mask(base / "pascal_2012_scribble" / "2007_000033.png", [255, 3, 255])  # there, but of the validation split


# name: (writer, training split, published numbers, label columns of a training image, names in its items)
CASES = {
    "ade20k": (write_ade20k, "train", ADE20K["train"][1], [255, 0, 149], ["ADE_train_00000001", "ADE_train_00000002"]),
    "pascal_context_59": (write_pascal_context, "train", "4998 or 4996", [255, 0, 58], ["2008_000002"]),
    "pascal_context_60": (write_pascal_context, "train", "4998 or 4996", [0, 1, 59], ["2008_000002"]),
    "coco_stuff_10k": (write_coco_stuff_10k, "train", COCO_STUFF["train"][1], [255, 0, 170],
                       ["COCO_train2014_000000000077"]),
    "cityscapes": (write_cityscapes, "train", CITYSCAPES["train"], [255, 0, 18], ["aachen/aachen_000000_000019"]),
    "loveda": (write_loveda, "train", LOVEDA["train"][1], [255, 0, 6], ["Rural/0", "Urban/1"]),
    "voc_2012": (write_voc_2012, "train_aug", VOC_2012["train_aug"], [0, 1, 255], ["2007_000032"]),
    "voc_scribble": (write_voc_scribble, "train", SCRIBBLES["train"], [255, 20, 255], ["2007_000032"]),
}  # fmt: skip


def test_published_numbers():
    """As the papers and the data sets' own pages give them (docs/datasets.md)."""
    assert {split: count for split, (_, count) in ADE20K.items()} == {"train": 20210, "val": 2000}
    assert {split: counts[0] for split, counts in PASCAL_CONTEXT.items()} == {"train": 4998, "val": 5105}
    assert {split: count for split, (_, count) in COCO_STUFF.items()} == {"train": 9000, "val": 1000}
    assert CITYSCAPES == {"train": 2975, "val": 500}
    assert VOC_2012 == {"train": 1464, "val": 1449, "trainval": 2913, "train_aug": 10582}
    assert {split: count for split, (_, count) in LOVEDA.items()} == {"train": 2522, "val": 1669}


@pytest.mark.parametrize("name", CASES)
def test_layout_and_format(name, tmp_path):
    writer, split, count, columns, names = CASES[name]
    writer(tmp_path)
    data = DataConfig(dataset=name, root=str(tmp_path), crop_size=(4, 4), options={"complete": False})
    items, classes = load_items(data, split), load_classes(data)
    assert [item.name for item in items] == names
    for item in items:
        sample = read_item(item, classes.table)
        assert sample["image"].shape == (*SIZE, 3)
        np.testing.assert_array_equal(sample["label"], np.resize(columns, SIZE[1])[None].repeat(SIZE[0], axis=0))
    assert len(create_eval_samples(data)) >= 1  # the split val is there, too
    message = rf"'{split}' of \w+ has {len(names)} items here, published are {count};.*data.options.complete=false"
    with pytest.raises(ValueError, match=message):
        load_items(data.model_copy(update={"options": {}}), split)


@pytest.mark.parametrize("name", CASES)
def test_missing_parts_name_the_remedy(name, tmp_path):
    writer, split, *_ = CASES[name]
    data = DataConfig(dataset=name, root=None, crop_size=(4, 4), options={"complete": False})
    with pytest.raises(ValueError, match="needs data.root.*docs/datasets.md"):
        load_items(data, split)
    writer(tmp_path)
    data = data.model_copy(update={"root": str(tmp_path)})
    with pytest.raises(ValueError, match="has no split 'tset'; known: train"):
        load_items(data, "tset")
    load_items(data, split)[0].image.unlink()
    with pytest.raises((FileNotFoundError, ValueError), match="do not exist|not paired"):
        load_items(data, split)
    shutil.rmtree(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist; set data.root"):
        load_items(data, split)


def test_the_published_number_passes(tmp_path, monkeypatch):
    write_ade20k(tmp_path)
    monkeypatch.setitem(ADE20K, "train", ("training", 2))
    assert len(load_items(DataConfig(dataset="ade20k", root=str(tmp_path), crop_size=(4, 4)), "train")) == 2


def test_cityscapes_from_train_ids(tmp_path):
    write_cityscapes(tmp_path)
    samples = []
    for labels in ("labelIds", "labelTrainIds"):
        options = {"complete": False, "labels": labels}
        data = DataConfig(dataset="cityscapes", root=str(tmp_path), crop_size=(4, 4), options=options)
        [item] = load_items(data, "train")
        assert item.label.name.endswith(f"_{labels}.png")
        samples.append(read_item(item, load_classes(data).table)["label"])
    np.testing.assert_array_equal(*samples)


def test_cityscapes_as_downloaded_says_how_to_prepare(tmp_path):
    write_cityscapes(tmp_path)
    for path in tmp_path.rglob("*_labelTrainIds.png"):
        path.unlink()
    made = tmp_path / "made"

    def refused(**options) -> str:
        data = DataConfig(dataset="cityscapes", root=str(tmp_path), crop_size=(4, 4), options=options)
        items, [finding] = list_split(data, "train")
        assert not items
        return finding.text

    command = f"python tools/prepare_cityscapes.py --root {tmp_path}"
    mend = f"`{command}`, or read the published files with data.options.labels=labelIds"
    assert mend in refused(labels="labelTrainIds")
    assert f"`{command} --output {made}`" in refused(labels="labelTrainIds", prepared=str(made))
    save_mask(made / "gtFine" / "train" / "aachen" / "aachen_000000_000019_gtFine_labelTrainIds.png", [0])
    assert "or read others with data.options.labels=labelTrainIds" in refused(prepared=str(made))


def test_prepared_files_may_lie_elsewhere(tmp_path):
    """A root that can only be read: labels and lists are in another folder."""
    root, made = tmp_path / "root", tmp_path / "made"
    write_pascal_context(root)
    for part in ("SegmentationClassContext", "ImageSets"):
        made.mkdir(exist_ok=True)
        (root / part).rename(made / part)
    options = {"complete": False, "prepared": str(made)}
    data = DataConfig(dataset="pascal_context_59", root=str(root), crop_size=(4, 4), options=options)
    [item] = load_items(data, "train")
    assert item.label.parent.parent == made and item.image.parent.parent == root


def test_voc_masks_are_palette_files(tmp_path):
    """The published masks are palette PNGs; read as colours they would hold three channels of something else."""
    write_voc_2012(tmp_path)
    data = DataConfig(dataset="voc_2012", root=str(tmp_path), crop_size=(4, 4), options={"complete": False})
    [item] = load_items(data, "val")
    with Image.open(item.label) as mask:
        assert mask.mode == "P" and mask.convert("RGB").getpixel((1, 0)) == (128, 0, 0)
    assert set(np.unique(read_item(item, VOC.table)["label"])) == {0, 1, 255}


def test_loveda_tiles_of_the_sample(data_root):
    """Real tiles; the ids that each holds are those that its README lists, less one."""
    sample = data_root / "loveda_sample"
    if not sample.is_dir():
        pytest.skip(f"no LoveDA sample at {sample}; set ECENET_DATA")
    classes = read_classes("loveda")
    present = {"0": {1, 2, 3, 4, 7}, "1": {1, 2, 3, 4, 6, 7}, "2": {1, 4, 6, 7}}
    for name, ids in present.items():
        item = FileItem(name, sample / "images" / f"{name}.jpg", sample / "labels" / f"{name}.png")
        read = read_item(item, classes.table)
        assert read["image"].shape == (1024, 1024, 3)
        assert set(np.unique(read["label"])) == {k - 1 for k in ids}
        with Image.open(item.label) as mask:
            np.testing.assert_array_equal(read["label"], np.asarray(mask).astype(int) - 1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_base_configs(name):
    """The settings are valid, name their data set, and evaluation takes what training crops or the whole image."""
    content = YAML(typ="safe", pure=True).load(ROOT / "config" / "_base_" / f"{name}.yaml")
    data, evaluation = DataConfig(**content.pop("data")), EvalConfig(**content.pop("eval"))
    assert data.dataset == name and not content and data.scale_range == (0.5, 2.0)
    assert evaluation.size == data.crop_size
    if data.base_size is None:
        assert evaluation.base_size is None
    else:  # at ratio 1, the short edge is the same; training may limit the long one more
        assert min(evaluation.base_size) == min(data.base_size)
    assert "docs/datasets.md" in (ROOT / "config" / "_base_" / f"{name}.yaml").read_text()
    headings = [line for line in (ROOT / "docs" / "datasets.md").read_text().splitlines() if line.startswith("## ")]
    assert any(f"`{name}`" in line for line in headings)


def test_ade20k_experiments_take_the_base():
    for path in sorted((ROOT / "config").glob("*/*_ade20k.yaml")):
        config = load_config(path)
        assert (config.data.dataset, config.data.max_classes, config.eval.mode) == ("ade20k", 64, "slide"), path
        assert config.data.base_size == config.eval.base_size == (2048, config.data.crop_size[0]), path
