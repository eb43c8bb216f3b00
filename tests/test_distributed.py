"""Two processes, each with half the batch, against one process with all of it."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import train
from src.config import load_config
from src.engine.checkpoint import read_tensors
from src.log import read_metrics
from tests.commands import ROOT
from tests.distributed_worker import BIG
from tests.tiny import CONFIG

CHANGES = (
    ("norm: batch", "norm: sync_batch"),
    # Adam would blow up rounding where a gradient cancels to zero
    ("name: adamw, lr: 1e-3", "name: sgd, lr: 0.05"),
    ("steps: 6", "steps: 3"),
    ("val_count: 2", "val_count: 3"),
)


def write_run(root: Path, batch_size: int) -> Path:
    text = CONFIG.format(root=root)
    for old, new in (*CHANGES, ("batch_size: 2", f"batch_size: {batch_size}")):
        assert old in text
        text = text.replace(old, new)
    root.mkdir()
    (root / "tiny.yaml").write_text(text)
    return root / "tiny.yaml"


def launch(config: Path, output: Path) -> None:
    """Runs the worker in two processes; fails with the end of their logs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    logs = output / "logs"
    command = [
        sys.executable, "-m", "mindspore.parallel.cluster.run", "--worker_num=2", "--local_worker_num=2",
        f"--master_port={port}", f"--log_dir={logs}", "--join=True", "--cluster_time_out=120",
        ROOT / "tests" / "distributed_worker.py", config, output,
    ]  # fmt: skip
    # the launcher starts `python` from PATH
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env={**os.environ, "PATH": path}, timeout=400)
    ends = [file.read_text(errors="replace")[-3000:] for file in sorted(logs.glob("worker_*.log"))]
    assert done.returncode == 0, "\n".join(ends)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """Run folders of two processes with batches of 2, and of this process with batches of 4."""
    root = tmp_path_factory.mktemp("distributed")
    if shutil.which("python", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("the launcher needs a program called python beside this one")
    launch(write_run(root / "two", batch_size=2), root)
    train.train(load_config(write_run(root / "one", batch_size=4)))
    return root / "two" / "tiny", root / "one" / "tiny"


@pytest.mark.slow
def test_two_processes_train_as_one(runs):
    weights, expected = (read_tensors(run / "checkpoints" / "latest" / "weights.safetensors")[0] for run in runs)
    assert weights.keys() == expected.keys()
    assert any(name.endswith("moving_variance") for name in weights)
    for name, value in expected.items():
        np.testing.assert_allclose(weights[name], value, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_two_processes_log_and_score_as_one(runs):
    records, expected = (read_metrics(run / "metrics.jsonl") for run in runs)
    assert [(r["kind"], r["step"]) for r in records] == [(r["kind"], r["step"]) for r in expected]
    assert len(records) == 4
    for i in range(3):
        np.testing.assert_allclose(records[i]["loss"], expected[i]["loss"], rtol=1e-4)
    np.testing.assert_allclose(records[0]["grad_norm"], expected[0]["grad_norm"], rtol=1e-4)
    # every image was scored by one of the ranks; single pixels may fall to another class by rounding
    np.testing.assert_allclose(records[-1]["miou"], expected[-1]["miou"], atol=1e-3)
    np.testing.assert_allclose(records[-1]["pixel_accuracy"], expected[-1]["pixel_accuracy"], atol=1e-3)


@pytest.mark.slow
def test_counts_are_summed_exactly(runs):
    for rank in (0, 1):
        counts = np.load(runs[0].parents[1] / f"counts_{rank}.npy")
        assert counts.dtype == np.int64 and counts.tolist() == [3, 2 * BIG, -1]
