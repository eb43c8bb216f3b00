"""Checkpoints: exact resuming, and going on from the last good one, whatever happened to the others."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import train
from src import distributed
from src.config import load_config
from src.engine import checkpoint, event_file, trainer, weights
from src.engine.checkpoint_files import FILES, MARKER
from src.log import read_metrics
from tests.checkpoint_writer import names
from tests.event_files import shown
from tests.test_run_logs import rows
from tests.tiny import SMALL, equal, weights_of, with_optimizer, write_config

CLASSES = {"names": ["a", "b", "c", "d"], "palette": []}


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


def test_averages_are_the_weights_to_use_and_the_trained_ones_come_back(tmp_path):
    network, optimizer = with_optimizer(1, ema_decay=0.9)
    folder = checkpoint.save_checkpoint(tmp_path, 7, network, optimizer, {}, best=True)
    trained, averages = weights_of(network), {p.name: p.asnumpy() for p in optimizer.averages}
    used, plain = with_optimizer(2)
    weights.load_weights(used, tmp_path)  # as eval.py, export.py and predict.py do
    for name, value in weights_of(used).items():
        assert value.tobytes() == averages.get(f"ema.{name}", trained[name]).tobytes() and f"ema.{name}" in averages
    with pytest.raises(ValueError, match="unexpected: raw.backbone"):
        checkpoint.restore(folder, used, plain)
    fresh, fresh_optimizer = with_optimizer(3, ema_decay=0.9)
    checkpoint.restore(folder, fresh, fresh_optimizer)
    assert equal(weights_of(fresh), trained) and equal(weights_of(fresh_optimizer), weights_of(optimizer))
    weights.copy_weights(network, optimizer, used)  # as the evaluation in training does
    assert equal(weights_of(used), {name: averages[f"ema.{name}"] for name in trained})


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with checkpoints of the steps 10, 20 (the best) and 30, each of other values."""
    for step in (10, 20, 30):
        state = {"best_miou": 0.1, "best_step": min(step, 20)}
        checkpoint.save_checkpoint(tmp_path, step, *with_optimizer(step), state, step == 20, CLASSES, keep=3)
    return tmp_path


def damage(file: Path) -> None:
    """One bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def resumed(run: Path, capsys) -> tuple[dict, str]:
    """State and messages of going on; the weights are those of the state's step."""
    network, optimizer = with_optimizer(1)
    state = checkpoint.resume(run, network, optimizer, CLASSES["names"])
    expected, expected_optimizer = with_optimizer(state["step"])
    assert equal(weights_of(network), weights_of(expected))
    assert equal(checkpoint.parameters_of(optimizer), checkpoint.parameters_of(expected_optimizer))
    return state, capsys.readouterr().out


def target(run: Path, link: str) -> str:
    """Name of the complete checkpoint that a link names."""
    folder = (run / "checkpoints" / link).resolve(strict=True)
    assert checkpoint.problems_of(folder) == []
    return folder.name


def test_a_new_run_has_nothing_to_go_on_from(tmp_path):
    assert checkpoint.resume(tmp_path, *with_optimizer(), CLASSES["names"]) is None


def test_going_on_from_the_newest(run, capsys):
    state, told = resumed(run, capsys)
    assert state == {"step": 30, "best_miou": 0.1, "best_step": 20}
    assert told == f"going on from {run}/checkpoints/step_00000030, step 30\n"
    moved = run.with_name("moved")
    run.rename(moved)
    assert resumed(moved, capsys)[0] == state and target(moved, "latest") == "step_00000030"


@pytest.mark.parametrize("name", [*FILES, MARKER])
def test_a_damaged_one_is_passed_over_aloud(name, run, capsys):
    root = run / "checkpoints"
    damage(root / "step_00000030" / name)
    (root / "step_00000040.incomplete").mkdir()  # of a process that was killed
    state, told = resumed(run, capsys)
    assert state == {"step": 20, "best_miou": 0.1, "best_step": 20}
    first, second = told.splitlines()
    assert first.startswith(f"warning: passed over {root}/step_00000030: ") and name in first
    assert second == f"going on from {root}/step_00000020, step 20"
    assert (target(run, "latest"), target(run, "best")) == ("step_00000020", "step_00000020")
    assert names(root) == {"step_00000010", "step_00000020", "step_00000030.damaged", "latest", "best"}
    checkpoint.save_checkpoint(run, 25, *with_optimizer(25), {}, False)
    assert names(root) == {"step_00000020", "step_00000025", "step_00000030.damaged", "latest", "best"}
    checkpoint.save_checkpoint(run, 30, *with_optimizer(30), {}, False)
    assert names(root) == {"step_00000020", "step_00000030", "latest", "best"}


def test_a_latest_that_is_gone_is_said(run, capsys):
    shutil.rmtree(run / "checkpoints" / "step_00000030")
    state, told = resumed(run, capsys)
    assert state["step"] == 20 and target(run, "latest") == "step_00000020"
    assert f"passed over {run}/checkpoints/step_00000030: the folder is gone" in told


def test_nothing_good_is_left(run):
    for step in (10, 20, 30):
        damage(run / "checkpoints" / f"step_000000{step}" / "weights.safetensors")
    before = names(run / "checkpoints")
    with pytest.raises(ValueError, match="no usable checkpoint in .*; bring one back from a copy, or") as caught:
        checkpoint.resume(run, *with_optimizer(), CLASSES["names"])
    assert [line.split(":")[0].rsplit("/")[-1] for line in str(caught.value).splitlines()[1:]] == [
        "step_00000030", "step_00000020", "step_00000010",
    ]  # fmt: skip
    assert names(run / "checkpoints") == before


def test_a_checkpoint_of_an_earlier_version_is_refused_with_a_way_out(run):
    for step in (10, 20, 30):
        (run / "checkpoints" / f"step_000000{step}" / MARKER).unlink()
    with pytest.raises(ValueError, match="complete.json is missing: .* by a version that wrote no such file "):
        checkpoint.resume(run, *with_optimizer(), CLASSES["names"])


def test_a_lost_best_is_said_and_made_anew(run, capsys):
    damage(run / "checkpoints" / "step_00000020" / "optimizer.safetensors")
    state, told = resumed(run, capsys)
    assert state == {"step": 30}  # so that the next evaluation counts as the best
    assert f"{run}/checkpoints/best is lost, step_00000020: optimizer.safetensors has other content" in told
    assert names(run / "checkpoints") == {"step_00000010", "step_00000020.damaged", "step_00000030", "latest"}
    assert resumed(run, capsys)[0] == state


@pytest.mark.parametrize("link", ["latest", "best"])
def test_killed_before_a_link_was_set(link, run, capsys):
    state = {"best_miou": 0.2, "best_step": 40}
    checkpoint.save_checkpoint(run, 40, *with_optimizer(40), state, True, CLASSES, keep=4)
    file = run / "checkpoints" / link
    file.unlink()
    os.symlink("step_00000020", file)
    assert resumed(run, capsys)[0] == {"step": 40, **state}
    assert (target(run, "latest"), target(run, "best")) == ("step_00000040", "step_00000040")


def test_checkpoints_of_other_classes_are_refused(run):
    with pytest.raises(ValueError, match="trained for the 4 classes a, b, c, d; the data set of the config has the 1"):
        checkpoint.resume(run, *with_optimizer(), ("sky",))


def test_all_ranks_go_on_from_the_same(run, monkeypatch):
    damage(run / "checkpoints" / "step_00000030" / "weights.safetensors")
    sent = []
    monkeypatch.setattr(distributed, "sum_counts", lambda counts: sent.append(counts) or np.array([20, 1]))
    monkeypatch.setattr(checkpoint, "choose", lambda root: pytest.fail("only rank 0 chooses"))
    network, optimizer = with_optimizer(1)
    assert checkpoint.resume(run, network, optimizer, CLASSES["names"], 1, 2)["step"] == 20
    monkeypatch.undo()
    monkeypatch.setattr(distributed, "sum_counts", lambda counts: sent.append(counts) or counts)
    assert checkpoint.resume(run, network, optimizer, CLASSES["names"], 0, 2)["step"] == 20
    assert [list(counts) for counts in sent] == [[0, 0], [20, 1]]


@pytest.fixture(scope="module")
def run_once(tmp_path_factory):
    """Config, run folder of 6 steps, and a copy of that folder as it was after step 3, trained to the end."""
    root = tmp_path_factory.mktemp("runs")
    config = load_config(write_config(root), SMALL)
    run, interrupted = root / "runs" / "tiny", root / "interrupted"
    save, steps = trainer.save_checkpoint, []

    def save_and_copy(folder, step, *args, **options):
        result = save(folder, step, *args, **options)
        steps.append(step)
        if step == 3:
            shutil.copytree(folder, interrupted, symlinks=True)
            (interrupted / "metrics.jsonl").open("a").write('{"kind": "train", "step": 4, "loss": 1.0}\n{"kind": "tr')
            (interrupted / "metrics.csv").open("a").write("4,0.5,1.0\n5,0.")
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_file, "wanted", lambda: True)
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
    for name in (*FILES, MARKER):
        assert (latest / name).read_bytes() == (other / name).read_bytes(), name
    assert len(checkpoint.read_tensors(latest / "optimizer.safetensors")[0]) > 60
    records, other = (read_metrics(run / "metrics.jsonl") for run in (whole, resumed))
    clock = ("images_per_s", "waiting")
    assert [{k: v for k, v in r.items() if k not in clock} for r in records] == [
        {k: v for k, v in r.items() if k not in clock} for r in other
    ]
    assert [(r["kind"], r["step"]) for r in records] == [
        ("train", 1), ("train", 2), ("train", 3), ("eval", 3), ("train", 4), ("train", 5), ("train", 6), ("eval", 6),
    ]  # fmt: skip
    losses = [r["loss"] for r in records if r["kind"] == "train"]
    assert len(set(losses)) == 6 and set(records[0]["terms"]) == {"ce"}


def test_all_logs_of_a_resumed_run_say_the_same(run_once):
    _, whole, resumed, _ = run_once
    tables = [rows(run / "metrics.csv") for run in (whole, resumed)]
    for row in (row for table in tables for row in table):
        assert float(row.pop("images_per_s")) > 0.0 and 0.0 < float(row.pop("waiting")) < 1.0
    assert tables[0] == tables[1] and [row["step"] for row in tables[0]] == list("123456")
    assert rows(whole / "metrics_eval.csv") == rows(resumed / "metrics_eval.csv")
    for run in (whole, resumed):
        records, points = read_metrics(run / "metrics.jsonl"), shown(run / "tensorboard")
        for kind, key in (("train", "loss"), ("eval", "miou"), ("train", "waiting")):
            expected = [(r["step"], pytest.approx(r[key], rel=1e-6)) for r in records if r["kind"] == kind]
            assert points[f"{kind}/{key}"] == expected
        assert [step for step, _ in points["train/terms.ce"]] == [1, 2, 3, 4, 5, 6]
        assert [step for step, _ in points["eval/iou.sky"]] == [3, 6]
    assert len(list((resumed / "tensorboard").iterdir())) == 2


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
            "train": config.train.model_copy(update={"log_every": 2, "ema_decay": None}),
        }
    )  # fmt: skip
    with pytest.raises(ValueError) as caught:
        train.train(other)
    text, changes = str(caught.value), ("optimizer.lr: 0.001 there, 0.5", "seed: 0 there, 9", "decay: 0.9 there, null")
    assert all(part in text for part in (str(run), "another name=", *(f"{change} now" for change in changes)))
    assert "log_every" not in text  # may differ: it changes neither samples nor weights
    assert load_config(run / "config.yaml") == config  # the refused settings were not written


def test_another_number_of_images_a_step_is_refused(run_once, monkeypatch):
    config, _, run, _ = run_once
    state = json.loads((run / "checkpoints" / "latest" / "state.json").read_text())
    assert state["images_a_step"] == 2
    monkeypatch.setattr(train, "step_shape", lambda *_: (2, 1, 2))  # as on two devices
    with pytest.raises(ValueError, match="trained with 2 images a step, now there would be 4.* as many devices"):
        train.train(config)


def test_settings_that_may_differ_go_on(run_once, capsys):
    config, _, run, _ = run_once
    settings = config.train.model_copy(update={"log_every": 2})
    train.train(config.model_copy(update={"train": settings}))
    assert load_config(run / "config.yaml").train.log_every == 2
    train.train(config)
