"""The command line that relates gains of classes to compactness and locality."""

import csv
import json

import numpy as np
import pytest

from src.analysis.compactness import class_compactness
from src.config import load_config
from src.data import load_classes, load_items
from src.data.reading import read_item
from src.text.tables import TextTable, new_meta, write_table
from tests.commands import refuse, succeed
from tests.tiny import write_config

TOOL = "tools/analyse_gains.py"


@pytest.fixture
def inputs(tmp_path) -> dict:
    """A config, scores before and after, a table; two classes are unseen."""
    config = write_config(tmp_path)
    names, rng = load_classes(load_config(config).data).names, np.random.default_rng(0)
    rows = rng.normal(size=(len(names), 512)).astype(np.float32)
    write_table(tmp_path / "t.npz", TextTable(names, rows, meta=new_meta("ViT-B/16", normalised=False, source="drawn")))
    for file, shift in (("none", 0.0), ("fused", 0.1)):
        scores = [{"name": name, "iou": 0.1 + shift * k if k else None} for k, name in enumerate(names)]
        (tmp_path / f"{file}.json").write_text(json.dumps({"classes": scores}))
    return {
        "--config": config, "--before": tmp_path / "none.json", "--after": tmp_path / "fused.json",
        "--table": tmp_path / "t.npz", "--unseen": ",".join(names[2:4]), "--output": tmp_path / "out",
    }  # fmt: skip


def arguments(inputs: dict, **changed) -> list:
    return [part for pair in {**inputs, **changed}.items() for part in pair]


def test_the_tool_writes_a_row_for_each_class(inputs):
    said = succeed(TOOL, *arguments(inputs), "--fusion", "oracle")
    assert "gain with compactness: Spearman" in said and (inputs["--output"] / "gains.png").is_file()
    lines = (inputs["--output"] / "gains.csv").read_text().splitlines()
    assert lines[0] == "# fusion: oracle; uses_ground_truth: true" and "ground truth" in lines[1]
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    data = load_config(inputs["--config"]).data
    labels = [read_item(item, load_classes(data).table)["label"] for item in load_items(data, data.val_split)]
    shapes = np.stack([class_compactness(label, len(rows)) for label in labels])
    shown = (~np.isnan(shapes)).sum(0)
    assert [int(row["images"]) for row in rows] == shown.tolist()
    for k in np.flatnonzero(shown):
        assert float(rows[k]["compactness"]) == pytest.approx(np.nanmean(shapes[:, k]), abs=1e-6)
    assert rows[0]["gain"] == "" and float(rows[3]["gain"]) == pytest.approx(0.3)


def test_what_the_files_say_of_themselves_holds(inputs):
    unseen = inputs.pop("--unseen").split(",")
    for name, kind in (("--before", "none"), ("--after", "oracle")):
        scores = json.loads(inputs[name].read_text())
        facts = {"fusion": kind, "uses_ground_truth": kind == "oracle", "unseen": unseen}
        inputs[name].write_text(json.dumps({**facts, **scores}))
    said = succeed(TOOL, *arguments(inputs))
    assert "fusion: oracle; uses_ground_truth: true" in said and "oracle uses the ground truth" in said
    lines = (inputs["--output"] / "gains.csv").read_text().splitlines()
    assert lines[0] == "# fusion: oracle; uses_ground_truth: true"
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert [row["class"] for row in rows if row["unseen"] == "1"] == unseen and "iou_oracle" in rows[0]
    told = refuse(TOOL, *arguments(inputs), "--fusion", "select")
    assert "--fusion select, but" in told and "has scores of oracle" in told
    swapped = refuse(TOOL, *arguments(inputs, **{"--before": inputs["--after"]}))
    assert "has scores of fusion oracle; give those of none" in swapped
    assert "has scores of fusion none" in refuse(TOOL, *arguments(inputs, **{"--after": inputs["--before"]}))


def test_inputs_that_do_not_fit_are_refused(inputs, tmp_path):
    assert "does not say of which fusion its scores are: give --fusion" in refuse(TOOL, *arguments(inputs))
    bad = refuse(TOOL, *arguments(inputs, **{"--unseen": "unicorn"}), "--fusion", "select")
    assert "--unseen unicorn: need some, not all, of" in bad
    (tmp_path / "x.json").write_text('{"classes": [{"name": "moon", "iou": 1}]}')
    other = refuse(TOOL, *arguments(inputs, **{"--after": tmp_path / "x.json"}), "--fusion", "select")
    assert "has scores of moon; the config's data set has" in other
    (tmp_path / "x.json").write_text("[]")
    none = refuse(TOOL, *arguments(inputs, **{"--after": tmp_path / "x.json"}), "--fusion", "select")
    assert "holds no scores" in none
