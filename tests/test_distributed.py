"""Two processes, each with half the batch, against one process with all of it; evaluation shared by both.

One start of two real processes through the launcher and msrun serves all of these tests.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mindspore import nn

import train
from src.config import load_config
from src.engine.weights import read_tensors
from src.log import read_metrics
from tests.commands import ROOT
from tests.distributed_worker import BIG, SHARES, note_first_evaluation, note_samples, score_share
from tests.launching import free_port
from tests.sync_norm import C, train_norm
from tests.tiny import CONFIG

STEPS = 20
CHANGES = (
    ("norm: batch", "norm: sync_batch"),
    # Adam would blow up rounding where a gradient cancels to zero
    ("name: adamw, lr: 1e-3", "name: sgd, lr: 0.02"),
    ("steps: 6", f"steps: {STEPS}"),
    ("evaluate_every: 3, checkpoint_every: 3", f"evaluate_every: {STEPS}, checkpoint_every: {STEPS}"),
    ("val_count: 2", "val_count: 3"),
    ("depth: 2", "depth: 1"), ("taps: [1, 2]", "taps: [1]"),  # compiles in half the time
)


def write_run(root: Path, batch_size: int) -> Path:
    text = CONFIG.format(root=root)
    for old, new in (*CHANGES, ("batch_size: 2", f"batch_size: {batch_size}")):
        assert old in text
        text = text.replace(old, new)
    root.mkdir()
    (root / "tiny.yaml").write_text(text)
    return root / "tiny.yaml"


def launch(config: Path) -> None:
    """Runs the worker in two processes, which the launcher watches; fails with what it says."""
    command = [sys.executable, "tools/launch.py", "--script", "tests/distributed_worker.py", str(config), "2"]
    environ = {**os.environ, "MASTER_PORT": str(free_port()), "CLUSTER_TIMEOUT": "120"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path, dict]:
    """Folders of the run of two processes with batches of 2 and of this process with batches of 4; what it noted."""
    root = tmp_path_factory.mktemp("distributed")
    launch(write_run(root / "two", batch_size=2))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("count", "create_validation"):  # put back what is replaced by those that note
            patch.setattr(train, name, getattr(train, name))
        noted = {"samples": note_samples(), "fresh": note_first_evaluation()}
        train.train(load_config(write_run(root / "one", batch_size=4)))
    return root / "two" / "tiny", root / "one" / "tiny", noted


@pytest.fixture(scope="module")
def found(runs) -> list[dict]:
    """What each of the two processes noted."""
    folder = runs[0].parent / "found"
    return [json.loads((folder / f"found_{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_take_the_samples_of_one(runs, found):
    both = [sample for pair in zip(found[0]["samples"], found[1]["samples"], strict=True) for sample in pair]
    assert len(set(both)) == STEPS * 4 and both == runs[2]["samples"]


def test_two_processes_train_as_one(runs):
    weights, expected = (read_tensors(run / "checkpoints" / "latest" / "weights.safetensors")[0] for run in runs[:2])
    assert weights.keys() == expected.keys()
    assert any(name.endswith("moving_variance") for name in weights)
    for name, value in expected.items():
        np.testing.assert_allclose(weights[name], value, rtol=0, atol=1e-4, err_msg=name)


def test_two_processes_log_and_score_as_one(runs):
    records, expected = (read_metrics(run / "metrics.jsonl") for run in runs[:2])
    assert [(r["kind"], r["step"]) for r in records] == [(r["kind"], r["step"]) for r in expected]
    assert len(records) == STEPS + 1
    losses, wanted = ([r["loss"] for r in kind[:-1]] for kind in (records, expected))
    np.testing.assert_allclose(losses, wanted, rtol=0, atol=1e-5)
    assert max(wanted) - min(wanted) > 0.1  # it does train
    np.testing.assert_allclose(records[0]["grad_norm"], expected[0]["grad_norm"], rtol=1e-4)
    # single pixels may fall to another class by rounding
    np.testing.assert_allclose(records[-1]["miou"], expected[-1]["miou"], atol=1e-3)


def test_normalisation_over_two_processes_is_that_of_the_whole_batch(runs):
    """MindSpore's own BatchNorm2d on all samples is the oracle."""
    whole = train_norm(nn.BatchNorm2d(C, eps=1e-5, momentum=0.9), 0, 1)
    first, second = (np.load(runs[0].parent / "found" / f"norm_{rank}.npz") for rank in (0, 1))
    assert set(first.files) == set(whole)
    for name, expected in whole.items():
        kind = name.split()[0]
        if kind in ("mean", "variance"):
            assert first[name].tobytes() == second[name].tobytes()
            found = first[name]
        elif kind in ("gamma", "beta"):
            found = first[name] + second[name]
        else:
            found = np.empty_like(expected)
            found[0::2], found[1::2] = first[name], second[name]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5 * np.abs(expected).max(), err_msg=name)


def test_evaluation_is_shared_and_identical_to_one_process(runs, found):
    expected = runs[2]["fresh"]
    assert sorted(found[0]["fresh"]["names"] + found[1]["fresh"]["names"]) == sorted(expected["names"])
    assert len(expected["names"]) == 3 and expected["summary"]["images"] == 3
    for rank in (0, 1):
        assert found[rank]["fresh"]["summary"] == json.loads(json.dumps(expected["summary"]))


def test_shares_that_do_not_divide_add_up_to_the_whole(found):
    for total in SHARES:
        whole = json.loads(json.dumps(score_share(total, 0, 1)))
        assert whole["images"] == total
        for rank in (0, 1):
            assert found[rank]["shares"][total] == whole


def test_only_rank_0_writes(found):
    assert found[1]["written"] == []
    assert any("metrics.jsonl" in text for text in found[0]["written"])


def test_ranks_that_would_start_differently_are_refused(found):
    for rank in (0, 1):
        message = found[rank]["disagreement"]
        assert "step is 0 on rank 0, 3 on rank 1" in message and "same is" not in message


def test_counts_are_summed_exactly(runs):
    for rank in (0, 1):
        counts = np.load(runs[0].parent / "found" / f"counts_{rank}.npy")
        assert counts.dtype == np.int64 and counts.tolist() == [3, 2 * BIG, -1]
