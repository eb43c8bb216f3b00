"""The picture drawn from metrics.jsonl: its numbers, its runs and what misuse says."""

import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from src.log import MetricsLog, read_metrics
from tools.plot_run import curve, main, run_names, smooth

PLOT = Path(__file__).resolve().parents[1] / "tools" / "plot_run.py"


def make_run(path: Path, terms: tuple[str, ...] = ("ce", "dice"), evaluate: bool = True) -> Path:
    log = MetricsLog(path / "metrics.jsonl")
    for step in range(10, 210, 10):
        values = dict.fromkeys(terms, 1.0 / step)
        loss = math.nan if step == 50 else sum(values.values())
        speed = {"images_per_s": 1.0 if step == 10 else 8.0 + step / 1000, "waiting": step / 5000}
        log.write({"kind": "train", "step": step, "lr": 1e-4 / step, "loss": loss, "terms": values, **speed})
        if evaluate and step % 50 == 0:
            log.write({"kind": "eval", "step": step, "miou": step / 400, "pixel_accuracy": 0.9, "iou": [0.5, None]})
    return path


def test_curves_hold_the_records_of_their_kind(tmp_path):
    records = read_metrics(make_run(tmp_path) / "metrics.jsonl")
    steps, loss = curve(records, "train", "loss")
    assert steps.tolist() == list(range(10, 210, 10))
    assert math.isnan(loss[4]) and loss[0] == pytest.approx(0.2)
    assert curve(records, "train", "terms", "dice")[1][1] == pytest.approx(1 / 20)
    assert np.isnan(curve(records, "train", "terms", "other")[1]).all()
    assert curve(records, "eval", "miou")[1].tolist() == [0.125, 0.25, 0.375, 0.5]


def test_smoothing_is_a_centred_mean_that_passes_over_gaps():
    values = np.arange(100.0)
    values[50] = math.nan
    smoothed = smooth(values)  # a window of 3
    assert smoothed[[0, 10, 49, 51, 99]].tolist() == [0.5, 10.0, 48.5, 51.5, 98.5]
    assert math.isnan(smoothed[50])
    assert smooth(np.array([1.0, 5.0])).tolist() == [1.0, 5.0]


def test_runs_are_named_by_folder_or_by_path():
    assert run_names([Path("a/x"), Path("a/y/")]) == ["x", "y"]
    assert run_names([Path("a/x"), Path("b/x")]) == ["a/x", "b/x"]


def colours(path: Path) -> set[tuple[int, ...]]:
    picture = cv2.imread(str(path))
    assert picture.shape[0] > 600 and picture.shape[1] > 1000
    return {tuple(pixel) for pixel in picture.reshape(-1, 3)}


def test_script_draws_one_run_into_its_folder(tmp_path):
    run = make_run(tmp_path / "run")
    result = subprocess.run([sys.executable, PLOT, run], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(run / "curves.png")
    assert colours(run / "curves.png") >= {(0xB2, 0x72, 0x00), (0x00, 0x5E, 0xD5)}  # BGR of the first and second term


def test_several_runs_each_have_a_colour(tmp_path):
    first, second = make_run(tmp_path / "a", evaluate=False), make_run(tmp_path / "b", terms=("ce",))
    picture = tmp_path / "figures" / "both.png"
    assert main([str(first), str(second), "--output", str(picture)]) == 0
    assert colours(picture) >= {(0xB2, 0x72, 0x00), (0x00, 0x5E, 0xD5)}
    assert not (first / "curves.png").exists()


def test_runs_are_summed_up(tmp_path, capsys):
    first, second = make_run(tmp_path / "a[b]"), make_run(tmp_path / "b", terms=("ce",), evaluate=False)
    MetricsLog(first / "metrics.jsonl").write({"kind": "eval", "step": 250, "miou": 0.1})
    assert main([str(first), str(second), "--output", str(tmp_path / "both.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert cells == [  # 2 / 200 and 1 / 200; the speeds' middle is 8.105
        ["a[b]", "250", "0.010", "0.1000", "0.5000 at 200", "8.11", "2.1%"],
        ["b", "200", "0.005", "-", "-", "8.11", "2.1%"],
    ]


def test_run_without_evaluation_or_training_is_drawn(tmp_path):
    MetricsLog(tmp_path / "metrics.jsonl").write({"kind": "eval", "step": 10, "miou": None})
    assert main([str(tmp_path)]) == 0


def refusal(arguments: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_misuse_exits_with_2_and_says_why(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "metrics.jsonl").touch()
    assert f"there is no run folder {tmp_path / 'nope'}" in refusal([str(tmp_path / "nope")], capsys)
    assert "there is no metrics file" in refusal([str(tmp_path / "empty")], capsys)
    assert "holds no record yet" in refusal([str(tmp_path / "fresh")], capsys)
    assert "given twice" in refusal([str(run), str(run)], capsys)
    for name in ("a.xyz", ""):
        assert "does not end in .png or .svg" in refusal([str(run), "--output", str(tmp_path / name)], capsys)
    assert "metrics.jsonl" in refusal([str(run), "--output", str(run / "metrics.jsonl" / "a.png")], capsys)
    assert "RUN" in refusal([], capsys)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"kind": "train", "loss": 1.0}', ":2: no whole number `step`"),
        ('{"kind": "train", "step": 1, "terms": 3}', ":2: no whole number `step`, or `terms` that is no object"),
        ('{"kind": "eval", "step": 1, "miou": "high"}', ":2: miou is 'high', wanted a number or null"),
        ('{"kind": "train", "step": 1, "terms": {"ce": []}}', ":2: ce is [], wanted a number or null"),
    ],
)
def test_records_that_cannot_be_drawn_are_named(line, message, tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text(f'{{"kind": "note"}}\n{line}\n')
    assert f"metrics.jsonl{message}" in " ".join(refusal([str(tmp_path)], capsys).split())
