"""Stop signals: the run ends after its step, saved, and goes on as if nothing had happened."""

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import train
from src import cli
from src.config import load_config
from src.data.classes import Classes
from src.engine import checkpoint, trainer
from src.engine.evaluator import evaluate
from src.engine.stopping import Stopped, StopSignals
from src.log import MetricsLog, read_metrics
from tests.commands import ROOT, succeed
from tests.tiny import SMALL, write_config

CLOCK = ("images_per_s", "waiting")
SIG_IGN = 1  # of signal.h


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_the_first_signal_is_noted_and_the_handlers_are_given_back(name, capfd):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with StopSignals(130) as stop:
        assert not stop.asked()
        os.kill(os.getpid(), getattr(signal, name))
        assert stop.name == name
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.name == name  # and the process lives
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before
    assert capfd.readouterr().err.count("the run ends as soon as its steps are saved") == 1


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_that_a_library_took_is_taken_back(name):
    number = getattr(signal, name)
    with StopSignals(130) as stop:
        ctypes.CDLL(None).signal(number, SIG_IGN)  # behind Python's back
        assert not stop.asked()
        os.kill(os.getpid(), number)
        assert stop.name == name


def test_a_second_interrupt_ends_the_process_at_once():
    # the derivation of a key runs outside the interpreter for minutes, as a compiled step does for seconds
    code = (
        "import hashlib\nfrom src.engine.stopping import StopSignals\n"
        "with StopSignals(130):\n    print('ready', flush=True)\n    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_help_tells_the_exit_codes():
    text = " ".join(succeed("train.py", "--help").split())
    for code, word in ((85, "stopped by SIGTERM, SIGUSR1 or SIGINT"), (3, "not finite"), (130, "interrupted")):
        assert str(code) in text and word in text


SAMPLES = [(f"{i}.png", {"image": np.zeros((6, 8, 3), np.uint8), "label": np.zeros((6, 8), np.uint8)}) for i in "abc"]


def evaluate_samples(all_reduce, stop):
    classes = Classes(("sky", "road"), ((0, 0, 0), (1, 1, 1)), {0: 0})
    return evaluate(lambda image: image[..., 0], SAMPLES, classes, 1, False, all_reduce, stop)


def test_an_evaluation_is_given_up_by_all_devices():
    asked, sent = iter([False, True]), []

    def first_device(counts):
        sent.append(counts)
        return counts

    assert evaluate_samples(first_device, lambda: next(asked)) is None
    assert next(asked, "none left") == "none left"  # it did not go on to the third image
    assert evaluate_samples(lambda counts: counts + sent[0], lambda: False) is None  # the other one hears of it
    assert evaluate_samples(lambda counts: counts, lambda: False)["images"] == 3


def test_an_evaluation_that_will_be_repeated_is_dropped_from_the_log(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        log.write({"kind": "train", "step": step})
        log.write({"kind": "eval", "step": step})
    log.truncate_after(2, evaluated=False)
    assert [(r["kind"], r["step"]) for r in read_metrics(log.path)] == [("train", 1), ("eval", 1), ("train", 2)]


@dataclass
class Stop:
    """Where a run was stopped, what it said and what its checkpoint's state was."""

    message: str
    state: dict


def signal_once(number: int, function):
    """The function, sending this process a signal when it is first called."""
    left = [number]

    def wrapped(*args, **options):
        if left:
            os.kill(os.getpid(), left.pop())
        return function(*args, **options)

    return wrapped


DRAW_NOISE, TAKE_STEP = trainer.draw_noise, trainer.take_step


def bad_noise(*args, **options) -> np.ndarray:
    """The noise of a step, which makes the loss of the second and third step NaN."""
    noise = DRAW_NOISE(*args, **options)
    return noise * np.float32(np.nan) if args[2] in (1, 2) else noise


def train_with_bad_steps(config) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "draw_noise", bad_noise)
        return train.train(config)


def train_until_stopped(config, place, name: str, number: int, step: int) -> Stop:
    """Trains with a signal at the first call of `place`.`name` from step number `step` on; it must end the run."""
    function, at = getattr(place, name), [0]
    armed = signal_once(number, function)

    def note_step(loop, parts, state, step, *rest):
        at[0] = step + 1
        return TAKE_STEP(loop, parts, state, step, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "draw_noise", bad_noise)
        patch.setattr(trainer, "take_step", note_step)  # not that of the rehearsals
        patch.setattr(place, name, lambda *a, **o: (armed if at[0] >= step else function)(*a, **o))
        with pytest.raises(Stopped) as stopped:
            train.train(config)
    run = Path(config.output_dir) / config.name
    return Stop(str(stopped.value), json.loads((run / "checkpoints" / "latest" / "state.json").read_text()))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of an uninterrupted run, of one that was stopped four times, and the stops."""
    root = tmp_path_factory.mktemp("stops")
    steps = ("train.steps=8", "train.evaluate_every=3", "train.checkpoint_every=4", "train.log_every=2")
    config = load_config(write_config(root), [*SMALL, *steps, f"output_dir={root}"])
    state = train_with_bad_steps(config)
    shutil.move(root / "tiny", root / "whole")
    stops = [
        train_until_stopped(config, trainer, "run_step", signal.SIGTERM, 3),
        train_until_stopped(config, trainer, "save_checkpoint", signal.SIGINT, 4),
        train_until_stopped(config, train, "predict_label", signal.SIGUSR1, 6),
        train_until_stopped(config, trainer, "run_step", signal.SIGTERM, 8),
    ]
    assert train_with_bad_steps(config) == state
    return root / "whole", root / "tiny", stops


def test_where_the_runs_were_stopped(runs):
    _, folder, stops = runs
    goes_on = f"saved in {folder}; the same command goes on from there"
    assert [stop.message for stop in stops] == [
        f"stopped by SIGTERM after step 3 of 8, {goes_on}",
        f"stopped by SIGINT after step 5 of 8, {goes_on}",  # it came while step 4 was written, which was completed
        f"stopped by SIGUSR1 after step 6 of 8, {goes_on}",
        f"stopped by SIGTERM after step 8 of 8, {goes_on}",
    ]
    assert [stop.state["step"] for stop in stops] == [3, 5, 6, 8]
    assert [stop.state.get("evaluation_due", False) for stop in stops] == [True, False, True, True]
    assert [stop.state.get("means", {}).get("steps", 0) for stop in stops] == [1, 1, 0, 0]  # within a line of the log
    assert [(stop.state["skipped"], stop.state["bad_steps"]) for stop in stops] == [(2, 2), (2, 0), (2, 0), (2, 0)]


def test_a_stopped_run_ends_as_one_that_was_not(runs):
    whole, stopped, _ = runs
    latest, other = (run / "checkpoints" / "latest" for run in (whole, stopped))
    assert json.loads((latest / "state.json").read_text()) == json.loads((other / "state.json").read_text())
    for name in ("weights.safetensors", "optimizer.safetensors"):
        tensors, metadata = checkpoint.read_tensors(latest / name)
        others, other_metadata = checkpoint.read_tensors(other / name)
        assert {n: v.tobytes() for n, v in tensors.items()} == {n: v.tobytes() for n, v in others.items()}
        assert metadata == other_metadata
    records, others = (
        [{k: v for k, v in r.items() if k not in CLOCK} for r in read_metrics(run / "metrics.jsonl")]
        for run in (whole, stopped)
    )
    assert records == others
    assert [(r["kind"], r["step"]) for r in records] == [
        ("train", 2), ("eval", 3), ("train", 4), ("train", 6), ("eval", 6), ("train", 8), ("eval", 8),
    ]  # fmt: skip
    assert [r["skipped"] for r in records if r["kind"] == "train"] == [1, 2, 2, 2]


def start(config: Path, output: Path, *overrides: str) -> subprocess.Popen:
    command = [
        sys.executable, "train.py", "--config", config, *SMALL, f"output_dir={output}", "train.steps=100000",
        "train.evaluate_every=100000", "train.checkpoint_every=100000",
        "data.workers=2",  # with which MindSpore takes SIGTERM for itself
        *overrides,
    ]  # fmt: skip
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def read_until(process: subprocess.Popen, words: str) -> str:
    """What the process says up to a line with these words; the test fails where it never says them."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


def test_a_real_process_leaves_with_the_codes_of_the_contract(tmp_path):
    config, run = write_config(tmp_path), tmp_path / "tiny"
    process = start(config, tmp_path)
    try:
        read_until(process, "the training step is compiled")
        process.send_signal(signal.SIGTERM)
        text, _ = process.communicate(timeout=200)
        assert process.returncode == cli.RESUME == 85, text
        assert "stopped by SIGTERM before step 1 of 100000; the same command starts it again" in text.replace("\n", " ")
        assert not (run / "checkpoints").exists()

        process = start(config, tmp_path)
        read_until(process, "train ")
        process.send_signal(signal.SIGTERM)
        text, _ = process.communicate(timeout=200)
        assert process.returncode == cli.RESUME, text
        assert "SIGTERM: the run ends as soon as its steps are saved" in text
        step = int(re.search(r"stopped by SIGTERM after step (\d+) of 100000, saved in", text.replace("\n", " "))[1])
        assert (run / "checkpoints" / "latest").resolve().name == f"step_{step:08d}"

        process = start(config, tmp_path)
        assert f"step {step}" in read_until(process, "the training step is compiled")
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=20)
        assert process.returncode == cli.INTERRUPTED == 130, text
        assert "leaving at once" in text
        assert (run / "checkpoints" / "latest").resolve().name == f"step_{step:08d}"
    finally:
        process.kill()
        process.communicate()
