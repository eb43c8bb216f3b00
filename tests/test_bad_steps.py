"""Steps whose loss or gradient is not finite: they update nothing, are counted, and end the run with an autopsy."""

import json
import math
from functools import cache
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from src.config import load_config
from src.data import load_classes, load_items, train_transforms
from src.data.loader import SampleStream
from src.engine import trainer
from src.engine.autopsy import as_json, first_bad_module, label_histogram, write_autopsy
from src.engine.optimizer import SGD, Averaged
from src.engine.preflight import keep_states, put_back
from src.engine.train_step import TrainStep, draw_noise, run_step
from src.engine.weights import begin_averages
from src.losses import batch_counts
from tests.commands import run_command
from tests.tiny import SMALL, draw_batch, tiny_network, tiny_step, weights_of, write_config


class Plane(nn.Cell):
    """value = a * x + b * y of inputs (B, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.array([1.0, 2.0], np.float32)), name="plane.weight")

    def construct(self, image, noise):
        return {"logits": (image * self.weight * noise).sum(-1)}


class Total(nn.Cell):
    """The mean of all values, and an offset that no weight has a part in."""

    terms = ("values", "offset")

    def construct(self, outputs, batch, counts):
        return outputs["logits"].sum() / counts[2], batch["offset"].sum() / counts[2]


def plane_step(ema_decay: float | None = None, **options) -> TrainStep:
    network = Plane()
    optimizer = SGD(network.trainable_params(), [0.0], [1.0], momentum=0.5)
    if ema_decay is not None:
        optimizer = Averaged(optimizer, ema_decay)
    return TrainStep(network, Total(), optimizer, ("image", "offset"), **options)


@cache
def twins(**options) -> tuple[TrainStep, TrainStep]:
    """Two steps, compiled once, whose states are equal before a test and after it."""
    return plane_step(**options), plane_step(**options)


def run_plane(step: TrainStep, images: list, offset: float = 0.0, inputs=(0.1,)):
    """One step at rate 0.1 on micro-batches of one image; returns its result."""
    batches = [{"image": np.array([image], np.float32), "offset": np.full(1, offset, np.float32)} for image in images]
    noise = np.ones((len(batches), 1, 1), np.float32)
    counts = np.array([0, 0, len(batches)], np.float32)
    return run_step(step, np.array(inputs, np.float32), noise, batches, counts)


def states(step: TrainStep) -> list[bytes]:
    return [parameter.asnumpy().tobytes() for parameter in (*step.optimizer.parameters, *step.optimizer.velocities)]


BAD = {
    "loss and gradient": {"images": [[math.nan, 1.0]]},
    "gradient norm only": {"images": [[2e19, 3e19]]},  # its squares are beyond float32
    "loss only": {"images": [[1.0, 2.0]], "offset": math.inf},
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_bad_step_updates_nothing_and_the_next_goes_on(kind, clip_norm):
    step, other = twins(clip_norm=clip_norm)
    first = run_plane(step, [[3.0, 4.0]])
    assert math.isfinite(first.norm) and not first.stop
    before = states(step)
    result = run_plane(step, **BAD[kind])
    assert not math.isfinite(result.norm)
    assert math.isfinite(sum(result.terms.values())) == (kind == "gradient norm only")
    assert states(step) == before
    last = run_plane(step, [[1.0, -2.0]])
    for image in ([3.0, 4.0], [1.0, -2.0]):
        expected = run_plane(other, [image])
    assert last == expected and states(step) == states(other) != before
    assert len(step.compile_cache) == 1


def test_averages_follow_the_weights_and_stay_in_a_bad_step():
    step = plane_step(ema_decay=0.8)
    begin_averages(step.optimizer)
    expected = np.array([1.0, 2.0])
    for updates, image in enumerate([[3.0, 4.0], [1.0, -2.0], [math.nan, 1.0], [0.5, 0.5], [-2.0, 1.0]]):
        before = step.optimizer.averages[0].asnumpy().tobytes()
        result = run_plane(step, [image], inputs=step.optimizer.inputs(45 * updates, 0.1))
        if not math.isfinite(result.norm):
            assert step.optimizer.averages[0].asnumpy().tobytes() == before
            continue
        decay = min(0.8, (1 + 45 * updates) / (10 + 45 * updates))  # 0.1, then 0.8
        expected = decay * expected + (1 - decay) * step.network.weight.asnumpy().astype(np.float64)
        np.testing.assert_allclose(step.optimizer.averages[0].asnumpy(), expected, rtol=1e-6)
    assert abs(expected - step.network.weight.asnumpy()).max() > 0.05


@pytest.mark.parametrize("place", [0, 1])
def test_one_bad_micro_batch_spoils_its_step_and_no_other(place):
    step, other = twins(accumulate=2)
    before = states(step)
    images = [[1.0, 2.0], [3.0, 4.0]]
    images[place] = [math.inf, 1.0]
    assert not math.isfinite(run_plane(step, images).norm)
    assert states(step) == before
    good = [[1.0, 2.0], [3.0, -4.0]]
    assert run_plane(step, good) == run_plane(other, good) and states(step) == states(other) != before


def test_the_wish_to_stop_comes_back():
    step = plane_step()
    batches = [{"image": np.ones((1, 2), np.float32), "offset": np.zeros(1, np.float32)}]
    arguments = (np.zeros(1, np.float32), np.ones((1, 1, 1), np.float32), batches, np.ones(3, np.float32))
    assert [run_step(step, *arguments, stop).stop for stop in (False, True, False)] == [False, True, False]
    assert len(step.compile_cache) == 1


@pytest.fixture(scope="module")
def trained():
    """A train step with batch normalisation and Adam after a good and a bad step: its states after both, its result."""
    step = tiny_step(tiny_network(head="fcn", norm="batch"), "cross_entropy", {"name": "adamw"}, clip_norm=1.0)
    noise = draw_noise(step.network.noise_rates, 0, 0, 2)
    batch = draw_batch(2)

    def run_once(factors):
        return run_step(step, step.optimizer.inputs(0, 1e-3), factors, [batch], batch_counts(batch))

    start = weights_of(step.network)
    run_once(noise)
    good = {**weights_of(step.network), **weights_of(step.optimizer)}
    result = run_once(noise * np.float32(np.nan))
    bad = {**weights_of(step.network), **weights_of(step.optimizer)}
    return step, start, good, bad, result, run_once


def test_moments_and_running_statistics_stay(trained):
    _, start, good, bad, result, _ = trained
    assert not math.isfinite(result.norm)
    assert {name: value.tobytes() for name, value in bad.items()} == {n: v.tobytes() for n, v in good.items()}
    moved = [name for name in start if good[name].tobytes() != start[name].tobytes()]
    assert any(name.endswith("moving_mean") for name in moved) and len(moved) > 0.8 * len(start)
    assert any(name.startswith("adam_v") for name in good)


def test_what_a_rehearsal_changes_is_put_back():
    settings = {"optimizer": {"name": "adamw"}, "clip_norm": 1.0, "accumulate": 2, "ema_decay": 0.8}
    networks = [tiny_network("one_block", "fcn", norm="batch") for _ in range(2)]
    step, other = (tiny_step(network, "cross_entropy", **settings) for network in networks)
    before, inputs = keep_states(step), step.optimizer.inputs(0, 1e-3)
    names = {parameter.name.partition(".")[0] for parameter in step.get_parameters()}
    assert names == {"backbone", "head", "good", "adam_m", "adam_v", "ema", "gradient_sum", "loss_sum"}
    for _ in range(2):
        run_batch(step, inputs)
        put_back(step, before)
    for _ in range(2):
        assert run_batch(step, inputs) == run_batch(other, inputs)
        assert [x.tobytes() for x in keep_states(step)] == [x.tobytes() for x in keep_states(other)]
    assert len(step.compile_cache) == 1


def run_batch(step: TrainStep, inputs: np.ndarray):
    """One step on a batch drawn from the same seed in every micro-batch."""
    batch = draw_batch(2)
    noise = draw_noise(step.network.noise_rates, 0, 0, 2, accumulate=step.accumulate)
    return run_step(step, inputs, noise, [batch] * step.accumulate, batch_counts(batch))


def test_the_first_bad_module_is_found(trained):
    network = trained[0].network
    image, noise = draw_batch(2)["image"], draw_noise(network.noise_rates, 0, 0, 2)[0]
    assert first_bad_module(network, image, noise) is None
    spoilt = noise.copy()
    spoilt[1, 3] = np.nan  # the second branch of the second block, in one of the samples
    assert first_bad_module(network, image, spoilt) == "backbone.blocks.1 (Block)"
    weight = network.backbone.blocks[0].attn.proj.weight
    kept = weight.asnumpy().copy()
    weight.set_data(Tensor(np.full_like(kept, np.inf)))
    name = first_bad_module(network, image, spoilt)
    weight.set_data(Tensor(kept))
    assert name.startswith("backbone.blocks.0.attn.proj (")
    assert first_bad_module(network, image, noise) is None
    assert ms.get_context("mode") == ms.GRAPH_MODE


def test_the_autopsy_by_hand(tmp_path):
    step = plane_step()
    label = np.array([[[0, 1, 1, 255]]], np.int32)
    batches = [
        {"image": np.array([image], np.float32), "offset": np.zeros(1, np.float32), "label": label}
        for image in ([6.0, 8.0], [math.inf, 1.0])
    ]
    noise, counts = np.ones((2, 1, 1), np.float32), np.array([0, 0, 2], np.float32)
    file = tmp_path / "autopsy.json"
    facts = {"step": 7, "gradient_norm": math.nan}
    write_autopsy(file, facts, step, noise, batches, counts, [["a"], ["b"]], ["sky", "road"])
    found = json.loads(file.read_text())
    assert found["step"] == 7 and found["gradient_norm"] == "nan" and found["bad_weights"] == []
    good, bad = found["micro_batches"]
    assert good["samples"] == ["a"] and good["label_pixels"] == {"sky": 1, "road": 2, "ignored": 1}
    assert good["loss_terms"] == {"values": 11.0, "offset": 0.0}  # (6 + 16) / 2
    assert good["first_bad_module"] == "none" and good["gradient_norms"] == {"plane": 5.0}
    assert bad["samples"] == ["b"] and bad["loss_terms"]["values"] == "inf"
    assert bad["first_bad_module"] == "network (Plane)" and bad["gradient_norms"] == {"plane": "inf"}


def test_small_parts():
    assert label_histogram(np.array([[[2, 0], [255, 2]]]), ("a", "b", "c")) == {"a": 1, "c": 2, "ignored": 1}
    assert as_json({"x": [1, (math.inf, -math.inf)], "y": 0.5}) == {"x": [1, ["inf", "-inf"]], "y": 0.5}


def test_a_diverging_run_ends_with_an_autopsy(tmp_path):
    config = write_config(tmp_path)
    changes = [
        *SMALL, "optimizer.name=sgd", "optimizer.lr=1e30", "optimizer.warmup_steps=0", "optimizer.clip_norm=0",
        "train.steps=9", "train.max_bad_steps=2", "train.evaluate_every=9", "train.checkpoint_every=1",
    ]  # fmt: skip
    result = run_command("train.py", "--config", config, *changes)
    assert result.code == 3, (result.err, result.out)
    run = tmp_path / "runs" / "tiny"
    [file] = run.glob("autopsy_*.json")
    found, text = json.loads(file.read_text()), " ".join(result.err.split())
    step = found["step"]
    assert f"step {step}: loss" in text and str(file) in text and "lower optimizer.lr" in text
    assert file.name == f"autopsy_{step:08d}.json" and found["bad_steps"] == 2
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[step - 2])["skipped"] == 1 and json.loads(lines[step - 2])["loss"] is None

    loaded = load_config(config, changes)
    items, classes = load_items(loaded.data, "train"), load_classes(loaded.data)
    transforms = train_transforms(loaded.data, len(classes))
    stream = SampleStream(items, classes.table, transforms, 0, 2, first=2 * (step - 1))
    [part] = found["micro_batches"]
    assert part["samples"] == [items[int(stream[i][-1])].name for i in range(2)]
    assert sum(part["label_pixels"].values()) == 2 * 32 * 48
    assert not isinstance(found["loss_terms"]["ce"], float) or not isinstance(found["gradient_norm"], float)


def test_bias_correction_counts_updates_and_the_schedule_steps(monkeypatch):
    taken = []
    monkeypatch.setattr(trainer, "run_step", lambda cell, inputs, *rest: taken.append(inputs))
    step_cell = SimpleNamespace(inputs=lambda updates, rate, scale: (updates, rate))
    network, stop = SimpleNamespace(noise_rates=np.zeros(1)), SimpleNamespace(asked=lambda: False)
    loop = SimpleNamespace(seed=0, batch_size=1, accumulate=1, rank=0, world_size=1)
    parts = SimpleNamespace(
        step_cell=step_cell, network=network, stop=stop, count=len, rates=np.arange(9) / 10
    )
    trainer.take_step(loop, parts, {"skipped": 2, "bad_steps": 0}, 5, [])
    trainer.take_step(loop, parts, {}, 5, [])
    assert taken == [(3, 0.5), (5, 0.5)]
