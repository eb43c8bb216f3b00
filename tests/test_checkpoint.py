"""Checkpoints: what is kept, exact resuming, and every way in which a file can fail to fit."""

import json
import shutil

import numpy as np
import pytest
from mindspore import Tensor
from safetensors.numpy import save_file

import train
from src.config import OptimizerConfig, load_config
from src.engine import checkpoint, trainer
from src.engine.optimizer import create_optimizer
from src.log import read_metrics
from tests.tiny import tiny_network, weights_of, write_config


def with_optimizer(seed: int = 0):
    """A network and its optimiser, both filled with values of a seed."""
    network = tiny_network(head="fcn")
    optimizer = create_optimizer(network, OptimizerConfig(name="adamw", lr=1.0))
    rng = np.random.default_rng(seed)
    for parameter in [*network.get_parameters(), *optimizer.moments, *optimizer.squares]:
        parameter.set_data(Tensor(rng.random(parameter.shape).astype(np.float32)))
    return network, optimizer


def equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_restore_gives_back_what_was_saved(tmp_path):
    network, optimizer = with_optimizer(1)
    folder = checkpoint.save_checkpoint(tmp_path, 7, network, optimizer, {"best_miou": 0.5}, best=True)
    fresh, fresh_optimizer = with_optimizer(2)
    assert not equal(weights_of(fresh), weights_of(network))
    state = checkpoint.restore(folder, fresh, fresh_optimizer)
    assert state == {"step": 7, "best_miou": 0.5}
    assert equal(weights_of(fresh), weights_of(network))
    states, fresh_states = checkpoint.parameters_of(optimizer), checkpoint.parameters_of(fresh_optimizer)
    assert equal(states, fresh_states)
    assert len(states) == 2 * len(network.trainable_params()) and not set(states) & set(weights_of(network))


def test_latest_and_best_are_kept_and_no_others(tmp_path):
    network, optimizer = with_optimizer()
    root = tmp_path / "checkpoints"
    assert checkpoint.latest_checkpoint(tmp_path) is None
    for step, best in ((10, True), (20, False), (30, False)):
        checkpoint.save_checkpoint(tmp_path, step, network, optimizer, {}, best)
        (root / "step_00000025.incomplete").mkdir(exist_ok=True)  # left by a run that was killed
    names = {path.name for path in root.iterdir()} - {"step_00000025.incomplete"}
    assert names == {"step_00000010", "step_00000030", "latest", "best"}
    assert checkpoint.latest_checkpoint(tmp_path).name == "step_00000030"
    assert (root / "best").resolve().name == "step_00000010"
    checkpoint.save_checkpoint(tmp_path, 40, network, optimizer, {}, best=True)
    assert {path.name for path in root.iterdir()} == {"step_00000040", "latest", "best"}
    moved = tmp_path.with_name("moved")
    shutil.move(tmp_path, moved)
    assert checkpoint.latest_checkpoint(moved) == moved / "checkpoints" / "step_00000040"
    shutil.move(moved, tmp_path)


def test_what_a_path_means(tmp_path):
    network, optimizer = with_optimizer()
    first = checkpoint.save_checkpoint(tmp_path, 1, network, optimizer, {}, best=False)
    assert checkpoint.weights_file(tmp_path).resolve() == first / "weights.safetensors"  # no best yet: the latest
    best = checkpoint.save_checkpoint(tmp_path, 2, network, optimizer, {}, best=True)
    latest = checkpoint.save_checkpoint(tmp_path, 3, network, optimizer, {}, best=False)
    assert checkpoint.weights_file(tmp_path).resolve() == best / "weights.safetensors"
    assert checkpoint.weights_file(latest) == latest / "weights.safetensors"
    assert checkpoint.weights_file(latest / "weights.safetensors") == latest / "weights.safetensors"
    for wrong in (tmp_path / "nothing", tmp_path / "nothing.safetensors"):
        with pytest.raises(FileNotFoundError, match="no weights at .*nothing.*; looked for .*nothing"):
            checkpoint.weights_file(wrong)


@pytest.fixture(scope="module")
def run_once(tmp_path_factory):
    """Config, run folder of 6 steps, and a copy of that folder as it was after step 3, trained to the end."""
    root = tmp_path_factory.mktemp("runs")
    config = load_config(write_config(root))
    run, interrupted = root / "runs" / "tiny", root / "interrupted"
    save, steps = trainer.save_checkpoint, []

    def save_and_copy(folder, step, *args, **options):
        result = save(folder, step, *args, **options)
        steps.append(step)
        if step == 3:
            shutil.copytree(folder, interrupted, symlinks=True)
            (interrupted / "metrics.jsonl").open("a").write('{"kind": "train", "step": 4, "loss": 1.0}\n{"kind": "tr')
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "save_checkpoint", save_and_copy)
        cells = []
        make = train.TrainStep
        patch.setattr(train, "TrainStep", lambda *args, **options: cells.append(make(*args, **options)) or cells[-1])
        state = train.train(config)
        run.rename(root / "whole")
        interrupted.rename(run)
        assert train.train(config) == state
    assert steps == [3, 6, 6] and state["step"] == 6
    return config, root / "whole", run, cells


def test_resumed_run_equals_the_uninterrupted_one(run_once):
    _, whole, resumed, _ = run_once
    latest, other = (run / "checkpoints" / "latest" for run in (whole, resumed))
    assert (latest / "state.json").read_bytes() == (other / "state.json").read_bytes()
    for name in ("weights.safetensors", "optimizer.safetensors"):
        tensors, metadata = checkpoint.read_tensors(latest / name)
        other_tensors, other_metadata = checkpoint.read_tensors(other / name)
        assert len(tensors) > 100 and {n: v.tobytes() for n, v in tensors.items()} == {
            n: v.tobytes() for n, v in other_tensors.items()
        }
        assert metadata == other_metadata
    records, other = (read_metrics(run / "metrics.jsonl") for run in (whole, resumed))
    clock = ("images_per_s", "waiting")
    assert [{k: v for k, v in r.items() if k not in clock} for r in records] == [
        {k: v for k, v in r.items() if k not in clock} for r in other
    ]
    assert [(r["kind"], r["step"]) for r in records] == [
        ("train", 1), ("train", 2), ("train", 3), ("eval", 3), ("train", 4), ("train", 5), ("train", 6), ("eval", 6),
    ]  # fmt: skip
    losses = [r["loss"] for r in records if r["kind"] == "train"]
    assert len(set(losses)) == 6 and set(records[0]["terms"]) == {"ce", "mask", "dice", "diversity"}


def test_the_step_is_compiled_once(run_once):
    *_, cells = run_once
    assert [len(cell.compile_cache) for cell in cells] == [1, 1]


def test_the_written_config_repeats_the_run(run_once, tmp_path):
    config, whole, _, _ = run_once
    assert load_config(whole / "config.yaml") == config


def test_a_finished_run_does_nothing(run_once, capsys):
    config, _, run, _ = run_once
    before = (run / "metrics.jsonl").read_bytes()
    state = train.train(config)
    assert "all 6 steps are done" in capsys.readouterr().out.replace("\n", " ")
    assert state == json.loads((run / "checkpoints" / "latest" / "state.json").read_text())
    assert state["step"] == 6 and state["best_miou"] >= state["miou"] > 0.0
    assert (run / "metrics.jsonl").read_bytes() == before


def test_other_settings_are_refused_by_name(run_once):
    config, _, run, _ = run_once
    other = config.model_copy(
        update={
            "optimizer": config.optimizer.model_copy(update={"lr": 0.5}), "seed": 9,
            "train": config.train.model_copy(update={"log_every": 2}),
        }
    )  # fmt: skip
    with pytest.raises(ValueError) as caught:
        train.train(other)
    text = str(caught.value)
    for part in (str(run), "another name=", "optimizer.lr: 0.001 there, 0.5 now", "seed: 0 there, 9 now"):
        assert part in text
    assert "log_every" not in text  # may differ: it changes neither samples nor weights
    assert load_config(run / "config.yaml") == config  # the refused settings were not written


def test_settings_that_may_differ_go_on(run_once, capsys):
    config, _, run, _ = run_once
    settings = config.train.model_copy(update={"log_every": 2})
    train.train(config.model_copy(update={"train": settings}))
    assert load_config(run / "config.yaml").train.log_every == 2
    train.train(config)


@pytest.mark.parametrize("place", ["name", "output_dir"])
def test_a_file_in_the_place_of_the_folder(place, tmp_path):
    config = load_config(write_config(tmp_path), [f"output_dir={tmp_path / 'runs'}"])
    taken = tmp_path / "runs" / ("tiny" if place == "name" else "")
    taken.parent.mkdir(exist_ok=True)
    taken.write_text("a file")
    with pytest.raises(PermissionError, match="cannot make the run's folder .*tiny: .*; set output_dir"):
        train.train(config)


def test_another_number_of_classes_is_said_first(tmp_path):
    network, optimizer = with_optimizer()
    folder = checkpoint.save_checkpoint(tmp_path, 1, network, optimizer, {}, best=True)
    with pytest.raises(ValueError) as caught:
        checkpoint.load_weights(tiny_network(head="fcn", num_classes=6), folder)
    first, *rest = str(caught.value).splitlines()
    assert "trained for 4 classes, the data set of the config has 6; use the config" in first
    assert sorted(line.split(":")[1].split()[0] for line in rest) == ["head.classifier.bias", "head.classifier.weight"]


def test_all_that_does_not_fit_is_listed(tmp_path):
    network = tiny_network(head="fcn")
    tensors = weights_of(network)
    tensors["head.fusion.weight"] = tensors["head.fusion.weight"][:3]
    tensors["surplus"] = np.zeros((2, 3), np.float32)
    del tensors["backbone.blocks.1.mlp.fc1.bias"], tensors["head.classifier.bias"]
    file = tmp_path / "odd.safetensors"
    save_file(tensors, file)
    before = weights_of(network)
    with pytest.raises(ValueError) as caught:
        checkpoint.load_weights(network, file)
    first, *rest = str(caught.value).splitlines()
    assert str(file) in first
    assert sorted(map(str.strip, rest)) == [
        "missing: backbone.blocks.1.mlp.fc1.bias (64,)",
        "missing: head.classifier.bias (4,)",
        "shape: head.fusion.weight is (3, 32, 3, 3) in the file, (8, 32, 3, 3) in the network",
        "unexpected: surplus (2, 3)",
    ]
    assert equal(weights_of(network), before)  # nothing was loaded halfway


def cubic_resize(values: np.ndarray, target: int, axis: int) -> np.ndarray:
    """Cubic convolution, coefficient -0.75, half-pixel centres, edges repeated; float64."""
    values = np.moveaxis(values.astype(np.float64), axis, 0)
    source, result = len(values), []
    for i in range(target):
        place = (i + 0.5) * source / target - 0.5
        low, total = int(np.floor(place)), 0.0
        for j in range(low - 1, low + 3):
            d = abs(place - j)
            near = (1.25 * d - 2.25) * d * d + 1.0
            far = -0.75 * (((d - 5.0) * d + 8.0) * d - 4.0)
            total = total + (near if d <= 1 else far) * values[min(max(j, 0), source - 1)]
        result.append(total)
    return np.moveaxis(np.array(result), 0, axis)


def test_pretrained_backbone_for_another_image_size(tmp_path):
    source, target = tiny_network(size=(64, 64)), tiny_network(size=(96, 128))
    tensors = {
        name: np.random.default_rng(len(name)).random(value.shape).astype(np.float32)
        for name, value in weights_of(source).items()
        if not name.startswith("backbone.norms.")  # public files have no norms for the taps
    }
    file = tmp_path / "backbone.safetensors"
    save_file(tensors, file, source.weight_metadata())
    before = weights_of(target)
    checkpoint.load_pretrained(target, file)
    for name, value in weights_of(target).items():
        if name == "backbone.pos_embed":
            grid = tensors[name].reshape(4, 4, 16)
            expected = cubic_resize(cubic_resize(grid, 6, 0), 8, 1).reshape(1, 48, 16)
            np.testing.assert_allclose(value, expected, atol=1e-5)
        else:
            fresh = name.startswith(("head.", "backbone.norms."))
            np.testing.assert_array_equal(value, (before if fresh else tensors)[name], err_msg=name)


def test_pretrained_file_must_hold_the_whole_backbone(tmp_path):
    network, file = tiny_network(head="fcn"), tmp_path / "part.safetensors"
    tensors = weights_of(network)
    save_file({name: value for name, value in tensors.items() if name.startswith("head.")}, file)
    with pytest.raises(ValueError, match="holds no 'backbone.' weights; make it with tools/convert_weights.py"):
        checkpoint.load_pretrained(network, file)
    del tensors["backbone.blocks.0.norm1.gamma"]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"missing: backbone.blocks.0.norm1.gamma \(16,\)"):
        checkpoint.load_pretrained(network, file)


@pytest.mark.parametrize("content", [b"", b"no tensors at all, but long enough to have a header", "cut"])
def test_an_unreadable_file_is_named(content, tmp_path):
    network, file = tiny_network(head="fcn"), tmp_path / "weights.safetensors"
    if content == "cut":
        save_file(weights_of(network), file)
        content = file.read_bytes()[:-100]
    file.write_bytes(content)
    with pytest.raises(ValueError, match="weights.safetensors: not a readable .safetensors file .*; write it again"):
        checkpoint.load_weights(network, file)
