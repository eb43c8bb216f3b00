"""What a training says of itself: the plan before its first step, the forecast, the facts beside the bar."""

import errno
import math
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from src.config import OptimizerConfig
from src.engine import preflight, recent_steps
from src.engine.checkpoint import checkpoint_size, save_checkpoint
from src.engine.preflight import most_checkpoints, rehearse, tell_plan
from src.engine.recent_steps import WINDOW, RecentSteps, format_bytes, format_memory
from src.engine.step_means import StepMeans
from src.engine.train_step import StepResult
from src.engine.trainer import Loop, Parts
from tests.tiny import with_optimizer

SETTINGS = OptimizerConfig(name="adamw", lr=0.5, warmup_steps=7)
CLASSES = {"names": ["a", "b", "c", "d"], "palette": []}


def make_loop(run: Path, **changes) -> Loop:
    loop = Loop(
        run=run, steps=100, first_step=0, batch_size=4, accumulate=3, log_every=1, evaluate_every=40,
        checkpoint_every=25, max_bad_steps=1, seed=0, rank=0, world_size=2, keep_checkpoints=2, classes=CLASSES,
    )  # fmt: skip
    return replace(loop, **changes)


@pytest.fixture(scope="module")
def parts():
    return with_optimizer()


def told(loop: Loop, parts, capsys) -> str:
    tell_plan(loop, SETTINGS, np.array([0.1, 0.4, 0.2]), 50, *parts)
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_the_plan(tmp_path, parts, capsys):
    text = told(make_loop(tmp_path), parts, capsys)
    network, _ = parts
    trained = sum(parameter.size for parameter in network.trainable_params())
    for words in (
        "steps 100: 48.0 epochs of 50 images",  # 100 x 24 / 50
        "images a step 24 = 4 a batch x 3 accumulated x 2 devices",
        "learning rate adamw, 0.4 at its highest, 7 steps of warm-up",
        f"parameters {trained:,} trained",
        f"checkpoints up to 4 of {format_bytes(checkpoint_size(*parts, CLASSES))} at a time",
        f"more needed, {format_bytes(shutil.disk_usage(tmp_path).free)[:2]}",
    ):
        assert words in text
    text = told(make_loop(tmp_path, first_step=60, world_size=1, accumulate=1), parts, capsys)
    assert "steps 100, of which 60 are done: 8.0 epochs" in text
    assert "images a step 4 learning rate" in text


def test_checkpoints_at_a_time(tmp_path, parts):
    loop = make_loop(tmp_path)
    assert [step for step in range(1, 101) if loop.saves(step)] == [25, 40, 50, 75, 80, 100]
    assert [step for step in range(1, 101) if loop.evaluates(step)] == [40, 80, 100]
    assert most_checkpoints(loop) == 4  # two that are kept, the best, the one being written
    assert most_checkpoints(replace(loop, first_step=80)) == 1
    save_checkpoint(tmp_path, 80, *parts, {}, True, CLASSES)
    assert most_checkpoints(replace(loop, first_step=80)) == 2


def test_the_size_of_a_checkpoint_is_that_on_the_disk(tmp_path, parts):
    folder = save_checkpoint(tmp_path, 1, *parts, {"miou": 0.5}, True, CLASSES)
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert 0 < checkpoint_size(*parts, CLASSES) - size < 65536


def test_a_run_whose_checkpoints_do_not_fit_is_refused(tmp_path, parts, monkeypatch, capsys):
    loop, size, usage = make_loop(tmp_path), checkpoint_size(*parts, CLASSES), namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(4 * size))
    tell_plan(loop, SETTINGS, [0.1], 50, *parts)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(4 * size - 1))
    with pytest.raises(OSError) as caught:
        tell_plan(loop, SETTINGS, [0.1], 50, *parts)
    assert caught.value.errno == errno.ENOSPC
    text = caught.value.strerror
    assert f"of {size:,} bytes each need {4 * size:,} bytes more, {4 * size - 1:,} are free" in text
    assert str(tmp_path) in text and "lower train.keep_checkpoints" in text
    folder = save_checkpoint(tmp_path, 50, *parts, {}, True, CLASSES)  # what is there is not needed once more
    held = sum(file.stat().st_size for file in folder.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(4 * size - held))
    tell_plan(replace(loop, first_step=50), SETTINGS, [0.1], 50, *parts)


def result(ce: float, mask: float) -> StepResult:
    return StepResult({"ce": ce, "mask": mask}, ce, False)


@pytest.fixture
def memory(monkeypatch):
    """Memory of 3 MiB, of which 1 GiB of the device."""
    monkeypatch.setattr(recent_steps.psutil.Process, "memory_info", lambda self: namedtuple("m", "rss")(3 * 2**20))
    monkeypatch.setattr(recent_steps.ms.runtime, "memory_allocated", lambda: 2**30)


def test_facts_of_the_last_steps(memory):
    recent = RecentSteps(images=6)
    recent.add(result(3.0, 1.0), 60.0, 9.0)
    assert recent.text(1e-4) == (
        "loss 4.000 (ce 3.000 mask 1.000)  lr 1.0e-04  0.100 images/s  waiting for data 15.0%  "
        "memory 3 MiB, device 1.0 GiB"
    )
    recent.add(result(1.0, 0.5), 2.0, 0.5)
    recent.add(result(math.nan, 0.3), 4.0, 0.1)
    assert recent.text(2e-4) == (
        "loss 2.600 (ce 2.000 mask 0.600)  lr 2.0e-04  0.273 images/s  waiting for data 14.5%  "
        "memory 3 MiB, device 1.0 GiB"
    )
    for _ in range(WINDOW):
        recent.add(result(0.25, 0.5), 12.0, 0.0)
    told = "loss 0.750 (ce 0.250 mask 0.500)  lr 1.0e+00  0.500 images/s  waiting for data 0.0%"
    assert recent.text(1.0).startswith(told)


def test_a_single_term_and_none_that_is_finite(memory):
    recent = RecentSteps(images=1)
    recent.add(StepResult({"ce": math.inf}, math.inf, False), 1.0, 0.0)
    assert recent.text(0.5).startswith("loss nan  lr 5.0e-01  1.0 images/s")


def test_step_times_come_from_one_clock(monkeypatch):
    times = iter([10.0, 10.5, 14.0, 20.0, 20.25, 21.0])
    monkeypatch.setattr("src.engine.step_means.time.perf_counter", lambda: next(times))
    means, found = StepMeans(2), []
    for _ in range(2):
        means.start()
        means.data_ready()
        means.add(result(1.0, 1.0))
        found.append((means.last_seconds, means.last_waiting))
    assert found == [(4.0, 0.5), (1.0, 0.25)]
    assert means.read()["images_per_s"] == 4 / 5.0


class Rehearsal:
    """A loop of 12 steps in micro-batches of two, evaluated every 5, and what is asked of its steps."""

    def __init__(self, monkeypatch, first_step: int) -> None:
        self.taken, self.inside = [], False
        self.loop = make_loop(Path(), steps=12, evaluate_every=5, first_step=first_step, accumulate=2)
        self.parts = Parts(None, None, None, iter([{"number": i} for i in range(6)]), len, dict, None, ())
        times = iter([10.0, 12.0, 20.0, 50.0, 60.0, 61.5])
        monkeypatch.setattr(preflight, "take_step", self.take_step)
        monkeypatch.setattr(preflight.time, "perf_counter", lambda: next(times))
        monkeypatch.setattr(preflight, "peak_memory", lambda: 5 * 2**20)

    def __enter__(self) -> None:
        self.inside = True

    def __exit__(self, *error) -> None:
        self.inside = False

    def take_step(self, loop, parts, state, step, group, stop):
        assert loop is self.loop and parts is self.parts and math.isnan(stop)
        assert all(batch["progress"] == np.float32(2 / 12) for batch in group)
        self.taken.append((step, state["skipped"], [batch["number"] for batch in group], self.inside))


def test_the_first_step_is_rehearsed_and_its_data_are_not_lost(monkeypatch, capsys):
    rehearsal = Rehearsal(monkeypatch, first_step=2)
    parts = rehearse(rehearsal.loop, rehearsal.parts, {"skipped": 1}, rehearsal, 45.0)
    compiled, *timed = rehearsal.taken
    assert compiled == (2, 1, [0, 1], True) and timed == 3 * [(2, 1, [0, 1], False)]
    assert [batch["number"] for batch in parts.batches] == list(range(6))
    told = "about 2:35 to go: 10 steps of 2 s and 3 evaluations of 45 s; at most so far: memory 5 MiB"
    assert capsys.readouterr().out.splitlines()[1] == told


def test_a_run_without_a_step_left_is_not_rehearsed(monkeypatch, capsys):
    rehearsal = Rehearsal(monkeypatch, first_step=12)
    assert rehearse(rehearsal.loop, rehearsal.parts, {}, rehearsal, 45.0) is rehearsal.parts
    assert not rehearsal.taken and not capsys.readouterr().out


def test_units():
    assert [format_bytes(count) for count in (0, 1023, 2048, 5 * 2**20, 3 * 2**30, 2**41)] == [
        "0 bytes", "1023 bytes", "2 KiB", "5 MiB", "3.0 GiB", "2048.0 GiB",
    ]  # fmt: skip
    assert format_memory(2**20, 0) == "memory 1 MiB"
