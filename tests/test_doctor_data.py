"""The doctor's look at data: every kind of broken data set is found and named, no clean one raises an alarm."""

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from ruamel.yaml import YAML

from src.config import DataConfig, load_config
from src.data import load_classes, load_items
from src.data.classes import Classes, generate_palette, identity_table
from src.data.folder import folder_classes
from src.doctor import data, files, values
from src.doctor.finding import NOTE, errors
from tests.doctor_cases import BROKEN
from tests.doctor_data import CLEAN, COUNTS, SPLITS, configure, examine, image, label, write_clean
from tests.test_published import write_ade20k


def test_there_are_enough_kinds():
    assert len(BROKEN) >= 25 and len({case.code for case in BROKEN.values()}) >= 25 and len(CLEAN) >= 10


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_data_set_is_found_and_named(kind, tmp_path):
    case = BROKEN[kind]
    case.spoil(write_clean(tmp_path))
    found = examine(tmp_path)
    named = [f for f in found if f.code == case.code and all(part in f.text + f.mend for part in case.parts)]
    assert named, [(f.code, f.text, f.mend) for f in found]
    assert named[0].severity != NOTE


@pytest.mark.parametrize("kind", CLEAN)
def test_a_clean_data_set_raises_no_alarm(kind, tmp_path):
    CLEAN[kind](write_clean(tmp_path))
    assert examine(tmp_path) == []


def test_the_training_split_for_validation_is_told(tmp_path):
    write_clean(tmp_path)
    found = {f.code: f for f in examine(tmp_path, "data.val_split=train")}
    assert "data.train_split and data.val_split are both train" in found["same_split"].text


def test_real_data_raise_no_alarm(data_root):
    config = load_config("config/ecenet/vit_tiny_camvid.yaml", [f"data.root={data_root / 'camvid_480x360'}"])
    classes, items = load_classes(config.data), load_items(config.data, "val")
    assert data.check_first(config.data, classes, {"val": items}) == []


def test_real_one_based_labels_are_recognised_and_mended(data_root, tmp_path):
    """Three tiles of LoveDA, whose labels are 1..7 and 0 for no data, taken for zero-based ones."""
    for split, numbers in (("train", (0, 1)), ("val", (2,))):
        for kind, suffix in (("images", "jpg"), ("labels", "png")):
            (tmp_path / kind / split).mkdir(parents=True)
            for i in numbers:
                source = data_root / "loveda_sample" / kind / f"{i}.{suffix}"
                (tmp_path / kind / split / source.name).symlink_to(source)
    names = "names: [background, building, road, water, barren, forest, agricultural]\n"
    (tmp_path / "classes.yaml").write_text(names)
    found = {f.code: f for f in examine(tmp_path, "eval.mode=resize")}
    assert {f.code for f in errors(found.values())} == {"values_outside_table", "labels_one_based"}
    (tmp_path / "classes.yaml").write_text(names + found["labels_one_based"].mend.splitlines()[-1])
    found = examine(tmp_path, "eval.mode=resize")
    assert errors(found) == [] and {f.code for f in found} == {"class_absent"}  # no tile shows barren land


def test_reduced_labels_of_a_fixed_table_are_told(tmp_path):
    """ADE20K with its labels lowered by one and 255 for none, before training, too; what is printed is complete."""
    write_ade20k(tmp_path)
    for file in (tmp_path / "annotations").rglob("*.png"):
        Image.fromarray(np.array(Image.open(file)) - np.uint8(1)).save(file)  # 0 wraps round to 255
    settings = DataConfig(dataset="ade20k", root=str(tmp_path), crop_size=(4, 4), options={"complete": False})
    classes, items = load_classes(settings), load_items(settings, "train")
    with pytest.raises(ValueError, match="labels look zero-based.* and 150 never occurs") as error:
        data.check_first(settings, classes, {"train": items})
    lines = [line.strip() for line in str(error.value).splitlines()]
    (tmp_path / "classes.yaml").write_text("\n".join(line for line in lines if line.startswith(("names: ", "table: "))))
    read = folder_classes(str(tmp_path))
    assert read.names == classes.names and read.table == identity_table(150)


def test_values_below_255_may_be_stretched():
    assert {0: 0, 127: 1} in values.stretched(2) and {0: 0, 64: 1, 128: 2, 191: 3} in values.stretched(4)
    assert all(len(table) == 7 and max(table) <= 255 for table in values.stretched(7))


MENDED = [kind for kind, case in BROKEN.items() if "table: {" in "".join(case.parts)]


@pytest.mark.parametrize("kind", MENDED)
def test_the_printed_lines_mend_the_table(kind, tmp_path):
    """What is printed, written into classes.yaml, makes the data set a clean one."""
    case = BROKEN[kind]
    case.spoil(write_clean(tmp_path))
    mend = next(f.mend for f in examine(tmp_path) if f.code == case.code)
    assert f"write into {tmp_path / 'classes.yaml'}" in mend
    names = "[road, sky]" if kind == "black and white" else "[road, sky, tree]"
    line = mend.splitlines()[-1]
    (tmp_path / "classes.yaml").write_text(f"names: {names}\n{line}\n", "utf-8")
    assert errors(examine(tmp_path)) == [] and len(MENDED) >= 8


def test_names_are_quoted_where_yaml_needs_it():
    names = ("road", "true", "a: b", "sky, blue", "{x", "wei\u00df")
    classes = Classes(names, generate_palette(6), {})
    line = values.mend({k: k for k in range(6)}, classes, "classes.yaml").splitlines()[-1]
    assert line == 'table: {0: road, 1: "true", 2: "a: b", 3: "sky, blue", 4: "{x", 5: "wei\u00df"}'
    assert YAML(typ="safe", pure=True).load(line)["table"] == dict(enumerate(names))


def test_the_histogram_counts_pixels(tmp_path):
    """Values, ids and shares of a mask that is counted by hand; value 9 is class 0, too."""
    write_clean(tmp_path, "{names: [road, sky], table: {0: road, 9: road, 1: sky, 2: ignore}}\n")
    for split in SPLITS:
        for i in range(COUNTS[split]):
            mask = np.zeros((24, 32), np.uint8)
            mask[:, :8] = 1  # 192 px
            mask[0, :4] = 2
            mask[23, 30:] = 9
            Image.fromarray(mask).save(label(tmp_path, i, split))
    facts = data.examine(configure(tmp_path), SPLITS, Console(quiet=True))[1]
    train = facts["splits"]["train"]
    one = {"0": 24 * 32 - 192 - 2, "1": 188, "2": 4, "9": 2}
    assert train["values"] == {value: 6 * pixels for value, pixels in one.items()}
    road, sky = 6 * (24 * 32 - 192), 6 * 188
    assert [row["pixels"] for row in train["classes"]] == [road, sky]
    assert train["classes"][1]["share"] == sky / (road + sky) and train["classes"][1]["masks"] == 6
    assert train["ignored_pixels"] == 24 and train["samples"] == 6 and train["unusable"] == 0
    assert train["sizes"] == [{"size": [24, 32], "images": 6}]
    assert train["kinds"] == {"images": {"PNG": 6}, "masks": {"PNG L": 6}}


def test_masks_of_every_kind_are_told_apart(tmp_path):
    for kind, expected in (("palette PNG", "PNG P"), ("16-bit PNG", "PNG I;16"), ("BMP masks", "BMP L")):
        root = tmp_path / kind
        CLEAN[kind](write_clean(root))
        facts = data.examine(configure(root), ["val"], Console(quiet=True))[1]
        assert facts["splits"]["val"]["kinds"]["masks"] == {expected: 4}


def test_all_files_are_counted_and_the_first_named(tmp_path):
    write_clean(tmp_path)
    for i in range(6):
        image(tmp_path, i).write_bytes(b"")
    (finding,) = [f for f in examine(tmp_path) if f.code == "image_empty"]
    assert finding.text.startswith("split train: 6 files, the first: ") and len(finding.where) == 6
    assert all(f"train_{i}.png" in finding.text for i in range(6))


def test_settings_that_the_data_do_not_fit(tmp_path):
    write_clean(tmp_path, size=(56, 64))
    found = {f.code: f.text for f in examine(tmp_path, "eval.size=[48,64]", "data.max_classes=2")}
    assert "56 x 64 pixels (height x width) is larger than eval.size 48 x 64" in found["eval_size"]
    assert "holds 3 classes, but data.max_classes has room for 2" in found["max_classes"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.999])
def test_a_png_cut_anywhere_is_damaged(share, tmp_path):
    write_clean(tmp_path)
    whole = image(tmp_path).read_bytes()
    assert files.damage(whole) is None
    kind, text = files.damage(whole[: int(len(whole) * share)]) or (None, "")
    # Below the signature nothing says that it was a PNG; decoding refuses that.
    assert kind == ("empty" if share == 0.0 else "truncated" if len(whole) * share > 8 else None), text
