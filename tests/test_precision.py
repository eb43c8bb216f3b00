"""Products in 16 bit: what a device gets; the scale of the loss, by hand; steps that overflow because of it."""

import math
from itertools import pairwise

import mindspore as ms
import pytest

import train
from src import functional
from src.config import load_config
from src.engine import precision, trainer
from src.engine.precision import FIRST, GOOD_STEPS, LEAST, LOSS_SCALE, MOST, PATIENCE, half_type, multiplies, next_scale
from src.engine.train_step import StepResult
from src.engine.trainer import BAD_STEPS, SKIPPED, count_bad_steps
from src.log import read_metrics
from tests.test_bad_steps import plane_step, run_plane, states
from tests.tiny import write_config


def test_types_of_devices(monkeypatch):
    assert multiplies(ms.float32) and multiplies(ms.float16) and not multiplies(ms.bfloat16)  # this CPU
    assert half_type("O0", "Ascend") is half_type("O0", "CPU") is half_type("auto", "CPU") is None
    with pytest.raises(ValueError, match="train.amp_level O2 with device.target CPU: .*; give O0, or auto"):
        half_type("O2", "CPU")
    assert half_type("O2", "GPU") == half_type("auto", "Ascend") == ms.float16  # asked of this device: no bfloat16
    monkeypatch.setattr(precision, "multiplies", lambda dtype: dtype == ms.bfloat16)
    assert half_type("auto", "GPU") == half_type("O2", "Ascend") == ms.bfloat16


def test_half_precision_is_refused_on_cpu_before_anything_slow(tmp_path):
    config = load_config(write_config(tmp_path), ["train.amp_level=O2"])
    with pytest.raises(ValueError, match="train.amp_level O2 with device.target CPU"):
        train.train(config)
    assert not (tmp_path / "runs").exists()


def scaled(scale: float, good: int = 0) -> dict:
    return {LOSS_SCALE: scale, GOOD_STEPS: good}


def test_the_scale_by_hand():
    assert next_scale({}, 1.0, math.inf) == {}
    assert next_scale(scaled(1024.0, 5), 1.0, 2.0) == scaled(1024.0, 6)
    assert next_scale(scaled(1024.0, 5), 1.0, math.inf) == scaled(512.0)
    assert next_scale(scaled(1024.0, PATIENCE - 1), 1.0, 2.0) == scaled(2048.0)
    assert next_scale(scaled(MOST, PATIENCE - 1), 1.0, 2.0) == scaled(MOST)
    assert next_scale(scaled(1024.0, 5), math.nan, math.nan) == scaled(1024.0)  # a bad step: not the scale's fault
    assert next_scale(scaled(LEAST, 5), 1.0, math.nan) == scaled(LEAST)
    state, scales = precision.carry_scale({}, True), []
    for _ in range(PATIENCE):
        state = next_scale(state, 1.0, 1.0)
        scales.append(state[LOSS_SCALE])
    assert scales == [FIRST] * (PATIENCE - 1) + [2 * FIRST]


def test_overflow_is_skipped_but_no_bad_step(capsys):
    def after(state: dict, loss: float, norm: float) -> dict:
        return {**state, **count_bad_steps(state, StepResult({"ce": loss}, norm, False))}

    state = after({**scaled(2.0), SKIPPED: 3}, 1.0, math.inf)
    assert state == {**scaled(1.0), SKIPPED: 4, BAD_STEPS: 0}
    assert "gradients overflow, nothing updated; the loss is scaled by 1 now" in capsys.readouterr().out
    state = after(state, 1.0, math.inf)  # at the least scale
    assert state == {**scaled(1.0), SKIPPED: 5, BAD_STEPS: 1}
    assert after(state, math.nan, math.nan) == {**scaled(1.0), SKIPPED: 6, BAD_STEPS: 2}
    assert after(state, 1.0, 1.0) == {**scaled(1.0, 1), SKIPPED: 5, BAD_STEPS: 0}
    assert after({}, 1.0, math.inf) == {SKIPPED: 1, BAD_STEPS: 1}


@pytest.mark.parametrize("options", [{"clip_norm": 1.0}, {"accumulate": 2}])
def test_a_scaled_step_is_the_same_to_the_last_bit(options):
    step, other = plane_step(scaled=True, **options), plane_step(**options)
    images = [[3.0, 4.0], [1.0, -2.5]][: options.get("accumulate", 1)]
    for scale in (1.0, FIRST, 2.0**-3):
        result, expected = run_plane(step, images, inputs=(0.1, scale)), run_plane(other, images)
        assert result == expected and states(step) == states(other)
    before = states(step)
    result = run_plane(step, images, inputs=(0.1, 2.0**127))  # the gradients overflow, not the loss
    assert not math.isfinite(result.norm) and math.isfinite(sum(result.terms.values()))
    assert states(step) == before and len(step.compile_cache) == 1
    assert run_plane(step, images, inputs=(0.1, 1.0)) == run_plane(other, images) and states(step) == states(other)


def test_the_scale_of_the_state_goes_into_the_step(monkeypatch):
    taken = []
    monkeypatch.setattr(trainer, "run_step", lambda cell, inputs, *rest: taken.append(inputs))
    monkeypatch.setattr(trainer, "noise_of", lambda *arguments: None)
    step = plane_step(scaled=True)
    parts = type("Parts", (), {"step_cell": step, "rates": [0.5], "count": len})
    trainer.take_step(None, parts, scaled(512.0), 0, [], 0.0)
    parts.step_cell = plane_step()
    trainer.take_step(None, parts, {}, 0, [], 0.0)
    assert [list(inputs) for inputs in taken] == [[0.5, 512.0], [0.5]]


@pytest.mark.slow
def test_a_run_in_float16_goes_on_to_the_last_bit(tmp_path, monkeypatch):
    """On CPU, in the formulations of GPU and Ascend, from a scale that overflows and may grow after two good steps."""
    monkeypatch.setattr(functional, "on_cpu", lambda: False)
    monkeypatch.setattr(train, "half_type", lambda level, target: ms.float16)
    monkeypatch.setattr(precision, "PATIENCE", 2)
    monkeypatch.setattr(precision, "FIRST", 2.0**22)
    changes = ["model.head.name=fcn", "loss.name=cross_entropy", "train.steps=10", "train.checkpoint_every=5"]
    config = load_config(write_config(tmp_path), [*changes, "train.evaluate_every=10"])
    state = train.train(config)
    root, whole = tmp_path / "runs" / "tiny" / "checkpoints", tmp_path / "whole"
    records = read_metrics(root.parent / "metrics.jsonl")
    (root / "step_00000010").rename(whole)
    assert train.train(config) == state
    assert {f.name: f.read_bytes() for f in whole.iterdir()} == {
        f.name: f.read_bytes() for f in (root / "step_00000010").iterdir()
    }
    scales = [record[LOSS_SCALE] for record in records if record["kind"] == "train"]
    steps = {after / before for before, after in pairwise(scales)}
    assert steps == {0.5, 1.0, 2.0} and state[SKIPPED] > 0 and state[BAD_STEPS] == 0, scales


def test_a_scale_is_carried_on_and_left_behind():
    state = {"step": 3, **precision.carry_scale({}, True), "loss_scale": 512.0}
    assert precision.carry_scale(state, True) == state
    assert precision.carry_scale(state, False) == {"step": 3}  # products are float32 or bfloat16 now
