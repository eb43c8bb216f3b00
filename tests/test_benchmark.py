"""tools/benchmark.py: reports on a tiny network, arithmetic with a clock of the test's own, gradients of the parts."""

import json
from functools import partial
from itertools import count as numbers
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from src import cli
from src.config import load_config
from src.engine import timing
from src.engine.benchmark_table import format_gmacs, format_time
from src.models import create_model
from tests.config_example import write
from tools import benchmark as tool

TINY = """\
output_dir: {output}
data:
  {{dataset: toy_scenes, crop_size: [64, 64], workers: 1, max_class_share: 1.0, options: {options}}}
model:
  backbone: {{name: vit, width: 32, depth: 2, num_heads: 2, taps: [1, 2], drop_path: 0.1}}
  head: {{name: ecenet, channels: 32, num_heads: 2, norm: batch}}
loss: {{name: class_mask}}
optimizer: {{name: adamw, lr: 1e-3}}
train: {{steps: 10, batch_size: 2}}
eval: {{mode: resize, size: [32, 64]}}
"""
SCENES = "{train_count: 8, val_count: 2, size: [64, 64]}"
VIT_MACS = {(64, 64): 819200, (32, 64): 401408}  # depth (12 D^2 N + 2 N^2 D) + 768 D N: D = 32, depth 2, N = 16 and 8


def tiny(folder) -> Path:
    return write(folder, TINY.format(output=folder / "output", options=SCENES))


@pytest.fixture
def report_of(tmp_path):
    """A function: arguments -> the report that the command writes."""

    def make(*arguments: str) -> dict:
        file = tmp_path / "reports" / "report.json"
        tool.main(["--config", str(tiny(tmp_path)), "--steps", "3", "--json", str(file), *arguments])
        assert not (tmp_path / "output").exists()  # no run folder
        return json.loads(file.read_text())

    return make


def head_macs(size: tuple[int, int], tmp_path) -> int:
    config = load_config(tiny(tmp_path))
    return create_model(config.model, 9, size).head.count_macs()


def check_spread(spread: dict) -> None:
    assert 0.0 < spread["min"] <= spread["median"] <= spread["max"]
    assert 0.0 <= spread["iqr"] <= spread["max"] - spread["min"]


def check_parts(parts: dict, whole: str, names: set[str]) -> None:
    assert set(parts) == {whole, "rest"} | names
    for name in names | {whole}:
        check_spread(parts[name])
        assert parts[name]["share"] == pytest.approx(parts[name]["median"] / parts[whole]["median"])
    assert sum(parts[name]["share"] for name in names | {"rest"}) == pytest.approx(1.0)


def check_arithmetic(report: dict, size: tuple[int, int], forwards_per_s: float, tmp_path) -> None:
    macs = VIT_MACS[size], head_macs(size, tmp_path)
    assert report["gmacs"] == pytest.approx(
        {"backbone": macs[0] / 1e9, "head": macs[1] / 1e9, "total": sum(macs) / 1e9}, rel=1e-12
    )
    assert report["achieved_gflops"] == pytest.approx(2 * sum(macs) * forwards_per_s / 1e9)
    assert report["peak_share"] == pytest.approx(report["achieved_gflops"] / report["peak_gflops"])
    assert 0.0 < report["peak_share"] < 1.0


@pytest.mark.slow
def test_training(report_of, tmp_path, capsys):
    report = report_of("--mode", "train")
    shown = capsys.readouterr().out
    assert "backbone" in shown and "waiting for data" in shown and "need not add up" in shown
    check_spread(report["step"])
    check_parts(report["parts"], "step", {"backbone", "head", "loss"})
    assert report["first_step"] > 10 * report["step"]["median"]  # it compiles
    assert 2 / report["step"]["max"] <= report["images_per_s"] <= 2 / report["step"]["min"]
    assert 0.0 < report["waiting"] < 1.0
    assert 50e6 < report["peak_memory"] < 50e9  # bytes
    check_arithmetic(report, (64, 64), 3 * 2 / report["step"]["median"], tmp_path)
    assert (report["classes"], report["size"], report["batch_size"]) == (9, [64, 64], 2)


def test_inference(report_of, tmp_path):
    report = report_of("--mode", "infer")
    check_spread(report["image"])
    check_parts(report["parts"], "image", {"backbone", "head"})
    assert report["first_call"] > 10 * report["image"]["median"]
    assert 1 / report["image"]["max"] <= report["images_per_s"] <= 1 / report["image"]["min"]
    check_arithmetic(report, (32, 64), 1 / report["image"]["median"], tmp_path)


def test_data(report_of, monkeypatch, capsys):
    monkeypatch.setattr(tool, "write_drawn", partial(tool.write_drawn, size=(64, 80), count=5))
    report = report_of("--mode", "data", "--drawn", "jpg")
    for name in ("batch", "image"):
        check_spread(report[name])
    assert 2 / report["batch"]["max"] <= report["train_images_per_s"] <= 2 / report["batch"]["min"]
    assert 1 / report["image"]["max"] <= report["eval_images_per_s"] <= 1 / report["image"]["min"]
    assert "parts" not in report and "classes" not in report
    stages, shown = report["stages"], capsys.readouterr().out
    assert {"decode image", "decode label", "random_window", "photometric_distortion", "batch"} < stages.keys()
    assert sum(stage["share"] for stage in stages.values()) == pytest.approx(1.0)
    for name, stage in stages.items():
        assert stage["images_per_s"] == pytest.approx(1.0 / stage["seconds"])  # of one worker
        assert stage["images_per_s"] > report["predicted_images_per_s"] * 0.5 and name in shown
    ratio = report["share_of_predicted"]
    assert 0.0 < ratio["min"] <= ratio["median"] <= ratio["max"] and report["decoding_images_per_s"] > 0.0
    assert 0.0 < report["processor"]["share"] == pytest.approx(
        report["processor"]["stages"] / report["processor"]["pipeline"]
    )
    assert "predicted" in shown and "decoding alone" in shown


def test_synthetic_needs_no_data_set(report_of):
    overrides = ["data.dataset=folder", "data.root=nowhere", "model.head={name: fcn, channels: 8}"]
    report = report_of("--mode", "infer", "--synthetic", *overrides)
    assert report["classes"] == 150
    assert any("150 classes are assumed" in note and "nowhere" in note for note in report["notes"])


def test_synthetic_batches_are_like_real_ones(tmp_path):
    config = load_config(tiny(tmp_path), ["data.max_classes=4", "train.accumulate=2"])
    groups = tool.step_groups(config, 30, 1, True)
    real = tool.completed(next(tool.training_stream(load_config(tiny(tmp_path)), 1)))
    batch, again = next(groups)
    assert batch is again
    forms = {k: (v.dtype, v.ndim) for k, v in real.items() if k != "item"}  # drawn samples are of no item
    assert {k: (v.dtype, v.ndim) for k, v in batch.items()} == forms
    assert batch["image"].shape == real["image"].shape and batch["label"].shape == real["label"].shape
    assert all(np.unique(label).tolist() == [0, 1, 2, 3] for label in batch["label"])
    assert batch["present"].tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize("arguments, message", [
    (["--steps", "0"], "--steps 0: at least 1"),
    (["--mode", "data", "--synthetic"], "--synthetic"),
    (["--drawn", "jpg"], "--drawn: only with --mode data"),
    (["--classes", "5"], "only with --synthetic"),
    (["--synthetic", "--classes", "256"], "1 to 255"),
    (["--mode", "fast"], "invalid choice"),
    (["--mode", "infer", "data.dataset=folder", "data.root=nowhere"], "nowhere does not exist"),
    (["train.bach_size=2"], "train.batch_size"),
])  # fmt: skip
def test_misuse_exits_with_2(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.run(lambda: tool.main(["--config", str(tiny(tmp_path)), *arguments]))
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["train", "data"])
def test_missing_data_are_reported_before_anything_is_compiled(mode, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "create_model", None)
    text = TINY.format(output=tmp_path, options="{}").replace("toy_scenes", "camvid, root: nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        tool.main(["--config", str(write(tmp_path, text)), "--mode", mode])


class Clock:
    """Stands for time.perf_counter; `spend` makes a call that takes so many seconds, one after another."""

    def __init__(self, monkeypatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def spend(self, *seconds: float):
        remaining = iter(seconds)

        def call(*_):
            self.now += next(remaining)
            return self.now

        return call


def test_steps_are_timed_with_their_data(monkeypatch):
    clock = Clock(monkeypatch)
    # data: the first group, two thrown away, two of the warm-up, two timed; steps: compilation, warm-up, timed
    read = clock.spend(100.0, 0.5, 0.5, 7.0, 7.0, 1.0, 3.0)
    groups, seen = ([i, read()] for i in numbers()), []
    run = clock.spend(60.0, 20.0, 20.0, 4.0, 5.0)

    def step(group, number):
        seen.append((group[0], number))
        run()

    times, last = timing.time_steps(step, groups, 2, 2)
    assert times["first"] == 60.0
    assert times["waiting"].tolist() == [1.0, 3.0] and times["total"].tolist() == [5.0, 8.0]
    assert seen == [(0, 0), (3, 1), (4, 2), (5, 3), (6, 4)] and last[0] == 6


def test_numbers_are_short():
    times = [format_time(seconds) for seconds in (0.00254, 0.08248, 0.7308, 1.0, 171.234)]
    assert times == ["2.54 ms", "82.5 ms", "731 ms", "1.00 s", "171.23 s"]
    assert [format_gmacs(gmacs) for gmacs in (0.0008192, 2.9234, 1234.5)] == ["0.000819", "2.92", "1234.5"]


def test_calls_are_timed_by_turns(monkeypatch):
    clock, order = Clock(monkeypatch), []
    calls = {"a": clock.spend(50.0, 2.0, 1.0, 3.0), "b": clock.spend(70.0, 9.0, 5.0, 6.0)}
    noted = {name: lambda name=name, call=call: (order.append(name), call()) for name, call in calls.items()}
    seconds = timing.alternate(noted, 2, "test")
    assert {name: values.tolist() for name, values in seconds.items()} == {"a": [1.0, 3.0], "b": [5.0, 6.0]}
    assert order == ["a", "b"] * 4


def test_peak_is_that_of_the_fastest_products(monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(timing, "peak_product", lambda target: (clock.spend(9.0, 9.0, 4.0, 2.0, 5.0), 80.0))
    seconds, peak = timing.with_peak({"a": clock.spend(9.0, 9.0, 1.0, 2.0, 3.0)}, 3, "CPU")
    assert peak == 80.0 / 2.0 and {name: s.tolist() for name, s in seconds.items()} == {"a": [1.0, 2.0, 3.0]}


def test_spread_and_shares():
    assert timing.spread(np.array([1.0, 2.0, 3.0, 4.0, 10.0])) == {"median": 3.0, "min": 1.0, "max": 10.0, "iqr": 2.0}
    parts = timing.shares({"step": np.array([8.0]), "x": np.array([1.0]), "y": np.array([2.5])}, "step", repeats=2)
    assert {name: part["share"] for name, part in parts.items()} == {"step": 1.0, "x": 0.25, "y": 0.625, "rest": 0.125}
    assert timing.shares({"step": np.array([4.0]), "x": np.array([5.0])}, "step")["rest"]["share"] == -0.25


def test_products_do_what_they_are_counted_for(monkeypatch):
    monkeypatch.setitem(timing.PEAK_SIDE, "CPU", 8)
    _, macs = timing.peak_product("CPU")
    assert macs == timing.PEAK_PRODUCTS * 8**3
    x, w = (np.random.default_rng(i).normal(size=(8, 8)).astype(np.float32) for i in (1, 2))
    got = timing.Products(3)(Tensor(x), Tensor(w)).asnumpy()[0, 0]
    assert got == pytest.approx((x @ w @ w @ w)[0, 0], rel=1e-5)
