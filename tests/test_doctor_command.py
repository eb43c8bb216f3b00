"""The doctor before a training, and its command for data: exit codes, JSON, contact sheet."""

import json
import re
import time

import numpy as np
import pytest
from PIL import Image

from benchmarks import doctor as benchmark
from src.data import load_classes, load_items
from src.doctor import data, sheet
from src.doctor.census import take_census
from src.doctor.finding import Finding
from tests.commands import refuse, run_command
from tests.doctor_cases import BROKEN
from tests.doctor_data import (
    NAMES,
    SPLITS,
    configure,
    examine,
    image,
    label,
    look_up,
    put_value,
    write_clean,
    write_config,
)
from tests.tiny import CONFIG

# --- before a training ------------------------------------------------------------------------------------------------


def first(root, *overrides: str) -> list[Finding]:
    config = configure(root, *overrides)
    splits = {split: load_items(config.data, split) for split in SPLITS}
    return data.check_first(config.data, load_classes(config.data), splits)


def test_errors_stop_a_training_before_it_begins(tmp_path):
    look_up(1, 2, 3)(write_clean(tmp_path))
    text = refuse("train.py", "--config", write_config(tmp_path))
    for part in ("train/train_0.png holds values outside the table: 3", "look one-based", "3: tree, 255: ignore}",
                 "data.check_samples=0", "tools/doctor.py data --config FILE"):  # fmt: skip
        assert part in text
    assert not (tmp_path / "runs").exists()


def test_only_the_first_samples_are_read(tmp_path):
    put_value(write_clean(tmp_path), 99)  # in train_1
    assert first(tmp_path, "data.check_samples=1") == [] == first(tmp_path, "data.check_samples=0")
    with pytest.raises(ValueError, match="train_1.png holds values outside the table: 99"):
        first(tmp_path, "data.check_samples=2")


def test_bad_samples_that_are_skipped_are_warnings(tmp_path):
    put_value(write_clean(tmp_path), 3)
    image(tmp_path, 2).write_bytes(b"no image")
    found = first(tmp_path, "data.on_bad_sample=skip")
    assert {f.code for f in found} == {"image_unreadable", "values_outside_table", "labels_one_based"}
    assert {f.severity for f in found} == {"warning"}
    put = label(tmp_path, 1, "val")
    put.write_bytes(b"")
    with pytest.raises(ValueError, match="val_1.png"):  # an evaluation cannot leave images out
        first(tmp_path, "data.on_bad_sample=skip")


def test_what_only_all_files_can_tell_does_not_stop_a_training(tmp_path):
    case = BROKEN["black and white"]
    case.spoil(write_clean(tmp_path))
    assert [(f.code, f.severity) for f in first(tmp_path)] == [("labels_0_255", "warning")]
    assert ("labels_0_255", "error") in [(f.code, f.severity) for f in examine(tmp_path)]


def test_a_last_class_that_is_rare_is_no_shift(tmp_path):
    """Few images of many classes: only where all other values occur may the labels be shifted."""
    write_clean(tmp_path, "{names: [a, b, c, d, e], table: {0: ignore, 1: a, 2: b, 3: c, 4: d, 5: e}}\n")
    assert {f.code for f in examine(tmp_path)} == {"class_absent"}
    BROKEN["zero-based under a one-based table"].spoil(tmp_path)
    assert first(tmp_path) == [] and "labels_zero_based" in {f.code for f in examine(tmp_path)}
    BROKEN["zero-based with 255, one-based table that knows 255"].spoil(tmp_path)  # 0 and 255 for no label?
    assert [(f.code, f.severity) for f in first(tmp_path)] == [("labels_zero_based", "warning")]


def test_the_short_check_keeps_to_its_time(tmp_path, monkeypatch):
    write_clean(tmp_path)
    config = configure(tmp_path)
    items = load_items(config.data, "train") * 1000
    start = time.monotonic()
    census = take_census("train", items, load_classes(config.data).table, seconds=0.2)
    assert 0 < census.count < len(items) and time.monotonic() - start < 5.0


# --- the command ------------------------------------------------------------------------------------------------------

REPORT = {"schema", "command", "ok", "counts", "findings", "facts"}
FINDING = {"code", "severity", "text", "where", "mend"}
SPLIT = {"samples", "unusable", "classes", "values", "ignored_pixels", "kinds", "sizes"}


def test_the_json_report_keeps_its_form(tmp_path):
    label(write_clean(tmp_path)).write_bytes(b"")
    file = tmp_path / "reports" / "data.json"
    result = run_command("tools/doctor.py", "data", "--config", write_config(tmp_path), "--json", file)
    report = json.loads(file.read_text("utf-8"))
    assert result.code == 1 and report["ok"] is False and report["schema"] == 1 and report["command"] == "data"
    assert report.keys() == REPORT and all(entry.keys() == FINDING for entry in report["findings"])
    assert report["counts"] == {"error": 1, "warning": 0, "note": 0}
    assert report["findings"][0]["where"] == [str(label(tmp_path))]
    assert report["facts"].keys() == {"classes", "seconds", "splits"} and report["facts"]["classes"] == list(NAMES)
    assert all(split.keys() == SPLIT for split in report["facts"]["splits"].values())
    for row in report["facts"]["splits"]["train"]["classes"]:
        assert row.keys() == {"name", "pixels", "share", "masks"}
    result = run_command("tools/doctor.py", "data", "--config", write_config(tmp_path), "--json", "-")
    again = json.loads(result.out)
    assert again["findings"] == report["findings"] and result.code == 1 and again.keys() == report.keys()


def test_exit_codes_and_text(tmp_path):
    command = ("tools/doctor.py", "data", "--config", write_config(write_clean(tmp_path)))
    result = run_command(*command)
    assert result.code == 0 and "data: nothing stands in the way; 0 errors, 0 warnings, 0 notes" in result.out
    assert re.search(r"10 pairs in [\d.]+ s", result.out) and "2 tree" in result.out
    (label(tmp_path, 0, "val")).unlink()
    result = run_command(*command)
    assert result.code == 1 and "error image_alone: split val: 1 images have no label" in result.out
    assert "not usable as it is; 1 error, 0 warnings" in result.out
    image(tmp_path, 0, "val").unlink()
    BROKEN["class missing in training"].spoil(tmp_path)
    assert run_command(*command).code == 0 and run_command(*command, "--strict").code == 1
    assert run_command(*command, "--splits", "val", "--strict").code == 0
    assert "--samples 0: at least 1" in refuse(*command, "--samples", "0")
    assert "config file not found: x" in refuse(*command[:3], "x")


@pytest.mark.parametrize("command", [("config",), ("data", "--config"), ("env", "--config")], ids=lambda c: c[0])
def test_a_config_that_is_not_there_is_wrong_usage(command):
    assert "config file not found: nothing.yaml; give the path" in refuse("tools/doctor.py", *command, "nothing.yaml")


@pytest.mark.parametrize("arguments", [(), ("train.steps=3",), ("--strict",)])
def test_config_without_a_file(arguments):
    told = refuse("tools/doctor.py", "config", *arguments)
    assert "which configuration? Name its YAML file" in told and "config [-h] FILE [key=value ...]" in told


def test_drawn_scenes_are_read_too(tmp_path):
    (tmp_path / "toy.yaml").write_text(CONFIG.format(root=tmp_path).replace("train_count: 5", "train_count: 3"))
    result = run_command("tools/doctor.py", "data", "--config", tmp_path / "toy.yaml", "--json", "-")
    facts = json.loads(result.out)["facts"]
    assert facts["splits"]["train"]["samples"] == 3 and facts["splits"]["train"]["unusable"] == 0


@pytest.mark.slow
def test_the_benchmark_runs(data_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ECENET_DATA", str(data_root))
    benchmark.main(["--pairs", "6", "--rounds", "1", "--out", str(tmp_path / "out.json")])
    (entry,) = json.loads((tmp_path / "out.json").read_text()).values()
    assert entry["seconds"][0] > entry["reading_seconds"][0] > 0 and "6 pairs: " in capsys.readouterr().out


def test_a_sheet_of_another_kind_is_refused_before_anything_is_read(tmp_path):
    command = ("tools/doctor.py", "data", "--config", tmp_path / "gone.yaml", "--json", tmp_path / "x" / "a.json")
    assert "sheet.txt: the sheet is a PNG file" in refuse(*command, "--sheet", tmp_path / "x" / "sheet.txt")
    assert not (tmp_path / "x").exists()


def test_long_reasons_are_wrapped():
    font = sheet.load_font()
    reason = f"cannot decode image /data/{'street_scenes/' * 12}{'x' * 90}.png: no image of a known kind, copy it again"
    lines = sheet.wrap(reason, font, sheet.TILE)
    assert all(font.getlength(line) <= sheet.TILE for line in lines)
    assert "".join(lines).replace(" ", "") == reason.replace(" ", "")  # no letter is lost
    assert lines[0] == "cannot decode image /data/" and all(line.endswith("/") for line in lines[1:3])
    tiles = list(sheet.note_tiles("train_1", reason))
    inked = [(picture != sheet.GREY).any((1, 2)).nonzero()[0] for _, picture in tiles]
    assert [title for title, _ in tiles] == ["train_1", "not usable"]
    assert len(lines) * sheet.NOTE_LINE - 5 < inked[0].max() < sheet.TILE and inked[1].size == 0
    tiles = list(sheet.note_tiles("train_1", reason * 9))
    assert all((picture[-2 * sheet.NOTE_LINE :] != sheet.GREY).any() for _, picture in tiles)  # both are full


def test_the_contact_sheet(tmp_path):
    """Tiles of samples and augmented ones; the label's colours lie over the images at half strength."""
    write_clean(tmp_path)
    (tmp_path / "classes.yaml").write_text(
        "{names: [road, sky, tree], palette: [[255, 0, 0], [0, 255, 0], [0, 0, 255]]}\n"
    )
    for i in range(6):
        Image.fromarray(np.full((24, 32, 3), 100, np.uint8)).save(image(tmp_path, i))
    image(tmp_path, 5).write_bytes(b"no image")
    file = tmp_path / "sheets" / "sheet.PNG"
    command = ("tools/doctor.py", "data", "--config", write_config(tmp_path), "--sheet", file, "data.photometric=false")
    result = run_command(*command, "--samples", "6")
    assert result.code == 1 and f"contact sheet: {file}" in result.out
    drawn = np.asarray(Image.open(file))
    assert drawn.shape[1] == 8 + 6 * 248 and drawn.shape[0] > 6 * 180
    colours, counts = np.unique(drawn.astype(np.int64) @ (1 << 16, 1 << 8, 1), return_counts=True)
    pixels = {(c >> 16, c >> 8 & 255, c & 255): n for c, n in zip(colours.tolist(), counts.tolist(), strict=True)}
    for tint in ((178, 50, 50), (50, 178, 50), (50, 50, 178)):
        near = sum(n for c, n in pixels.items() if max(abs(a - b) for a, b in zip(c, tint, strict=True)) <= 1)
        assert near > 5 * 240 * 180 / 4  # a third of each of 5 tiles
    assert pixels[(124, 116, 104)] > 240 * 180  # padding of augmented crops, as the network gets it
