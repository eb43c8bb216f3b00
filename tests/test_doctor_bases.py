"""The doctor's look at data with the base of a data set alone, on a few files in its published layout."""

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from src.config import load_config
from src.config_loading import ConfigError
from src.doctor.settings import load_settings
from tests.commands import ROOT, refuse, run_command
from tests.doctor_data import write_clean
from tests.layouts import save_mask, save_photo, write_lines
from tests.test_folds import write_coco, write_pascal
from tests.test_published import CASES
from tests.tiny import write_config

BASES = ROOT / "config" / "_base_"
OF_DATA = sorted(file.stem for file in BASES.glob("*.yaml") if "data" in YAML(typ="safe", pure=True).load(file))


def write_camvid(root: Path) -> None:
    for split in ("train", "val"):
        write_lines(root / f"{split}.txt", [f"{split}_0"])
        save_photo(root / "images" / split / f"{split}_0.jpg")
        save_mask(root / "labels" / split / f"{split}_0.png", [0, 10, 11])


WRITERS = {
    **{name: case[0] for name, case in CASES.items()}, "camvid": write_camvid, "folder": write_clean,
    "pascal_5i": write_pascal, "coco_20i": write_coco, "toy_scenes": None,
}  # fmt: skip
FEW = {"folder": [], "toy_scenes": ["data.options.train_count=2", "data.options.val_count=1"]}


@pytest.mark.parametrize("name", OF_DATA)
def test_data_are_looked_at_with_their_base_alone(name, tmp_path):
    settings = FEW.get(name, ["data.options.complete=false"])
    if WRITERS[name]:
        WRITERS[name](tmp_path)
        settings = [f"data.root={tmp_path}", *settings]
    result = run_command("tools/doctor.py", "data", "--config", BASES / f"{name}.yaml", "--json", "-", *settings)
    facts = json.loads(result.out)["facts"]
    assert len(facts["splits"]) == 2 and result.code in (0, 1)
    assert all(split["samples"] and not split["unusable"] for split in facts["splits"].values())


def test_a_sheet_needs_no_more_than_the_base(tmp_path):
    write_clean(tmp_path)
    command = ("tools/doctor.py", "data", "--config", BASES / "folder.yaml", f"data.root={tmp_path}")
    result = run_command(*command, "data.crop_size=[16,24]", "--samples", "1", "--sheet", tmp_path / "sheet.png")
    assert result.code == 0 and (tmp_path / "sheet.png").stat().st_size > 1000, result.err


def test_only_what_is_absent_as_a_whole_is_filled(tmp_path):
    file = write_config(tmp_path)
    assert load_settings(str(file), ["seed=3"]) == load_config(file, ["seed=3"])
    base = tmp_path / "base.yaml"
    base.write_text("data: {dataset: folder, crop_size: [8, 8]}\nmodel: {backbone: {name: vit}}\n")
    with pytest.raises(ConfigError, match="missing config keys: model.head; give them in"):
        load_settings(str(base), [])
    with pytest.raises(ConfigError, match="missing config keys: train.steps; give them in"):
        load_settings(str(BASES / "loveda.yaml"), ["train.batch_size=4"])
    assert load_settings(str(BASES / "adamw_poly.yaml"), ["data={dataset: x, crop_size: [8, 8]}"]).train.steps == 160000
    kept = load_settings(str(BASES / "loveda.yaml"), []).eval
    assert kept.mode == "slide" and kept.size == (512, 512)
    told = refuse("tools/doctor.py", "data", "--config", BASES / "sgd_poly.yaml")
    assert "missing config keys: data.dataset, data.crop_size" in told
