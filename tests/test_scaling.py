"""Efficiency and share of all-reduce, from seconds by hand."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import report, scaling
from tests.commands import ROOT
from tests.launching import free_port


def test_summary():
    one = [{"step": [1.0, 2.0, 9.0]}]
    two = [{"step": [2.0, 2.0], "without": [1.0, 1.5]}, {"step": [2.5, 1.0], "without": [2.0, 1.0]}]
    result = scaling.summarise({1: one, 2: two}, batch=4)
    assert result["processes"]["1"]["images_per_s"] == pytest.approx(4 / 2.0)
    assert result["processes"]["2"] == {"images_per_s": pytest.approx(8 / 2.25), "seconds": [2.5, 2.0]}
    assert result["efficiency"] == pytest.approx((8 / 2.25) / (2 * 2.0))
    assert result["all_reduce_share"] == pytest.approx(1 - 1.75 / 2.25)  # slowest without: 2.0, 1.5


def test_the_report_has_a_row_for_each_network():
    run = {"processor": "P", "cores": 2, "load_before": 0.25, "date": "D", "command": "C"}
    result = {"processes": {"1": {"images_per_s": 2.0}, "2": {"images_per_s": 3.0}}, "efficiency": 0.75,
              "all_reduce_share": 0.125}  # fmt: skip
    assert report.scaling({"a": {"run": run, "title": "A", **result}}).splitlines() == [
        "| row | 1 process, images/s | 2 processes, images/s | efficiency | all-reduce |",
        "| --- | --- | --- | --- | --- |",
        "| A | 2.000 | 3.000 | 0.75 | 12% |", "", "- P, 2 cores, load 0.2 before, D: `C`",
    ]  # fmt: skip


@pytest.mark.slow
def test_small_row_runs_from_end_to_end(tmp_path):
    command = [sys.executable, "-m", "benchmarks.scaling", "--row", "small_train", "--steps", "2"]
    environ = {**os.environ, "MASTER_PORT": str(free_port())}
    subprocess.run([*command, "--out", str(tmp_path / "out.json")], cwd=ROOT, env=environ, check=True)
    result = json.loads((tmp_path / "out.json").read_text())["small_train"]
    assert result["efficiency"] > 0.0 and result["all_reduce_share"] < 1.0
    assert len(result["processes"]["2"]["seconds"]) == 2
