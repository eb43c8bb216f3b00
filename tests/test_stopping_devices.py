"""A signal, or a NaN, that meets one of two devices: both stop at the same step, both leave the same update out."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from src.log import read_metrics
from tests.commands import ROOT
from tests.tiny import CONFIG

CHANGES = (
    ("head: {name: ecenet, channels: 16, norm: batch", "head: {name: fcn, channels: 8, norm: sync_batch"),
    ("name: class_mask", "name: cross_entropy"),
    ("val_count: 2", "val_count: 4"),  # two images a device, so that the signal comes before the last
)


def write_run(root: Path) -> Path:
    text = CONFIG.format(root=root)
    for old, new in CHANGES:
        assert old in text
        text = text.replace(old, new)
    (root / "tiny.yaml").write_text(text)
    return root / "tiny.yaml"


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> tuple[list, Path]:
    """Where the starts of each device ended, and the run's folder."""
    if shutil.which("python", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("the launcher needs a program called python beside this one")
    root = tmp_path_factory.mktemp("devices")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "mindspore.parallel.cluster.run", "--worker_num=2", "--local_worker_num=2",
        f"--master_port={port}", f"--log_dir={root / 'logs'}", "--join=True", "--cluster_time_out=120",
        ROOT / "tests" / "stopping_worker.py", write_run(root), root,
    ]  # fmt: skip
    # the launcher starts `python` from PATH
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env={**os.environ, "PATH": path}, timeout=400)
    logs = [file.read_text(errors="replace")[-3000:] for file in sorted((root / "logs").glob("worker_*.log"))]
    assert done.returncode == 0, "\n".join(logs)
    return [json.loads((root / f"ends_{rank}.json").read_text()) for rank in (0, 1)], root / "tiny"


@pytest.mark.slow
def test_both_stop_at_the_same_step(ended):
    (first, second), folder = ended
    after = f"after step 3 of 6, saved in {folder}; the same command goes on from there"  # asked in step 2, agreed in 3
    assert first[:2] == [f"stopped with another device {after}"] * 2  # the second time before the step's evaluation
    assert second[:2] == [f"stopped by SIGTERM {after}", f"stopped by SIGUSR1 {after}"]
    assert len(first) == len(second) == 3 and first[2] == second[2]
    assert first[2]["step"] == 6 and "evaluation_due" not in first[2]


@pytest.mark.slow
def test_both_leave_out_the_same_update(ended):
    (first, second), folder = ended
    assert first[2]["skipped"] == second[2]["skipped"] == 1 and first[2]["bad_steps"] == 0
    records = read_metrics(folder / "metrics.jsonl")
    assert [(r["kind"], r["step"]) for r in records] == [
        ("train", 1), ("train", 2), ("train", 3), ("eval", 3), ("train", 4), ("train", 5), ("train", 6), ("eval", 6),
    ]  # fmt: skip
    assert records[0]["loss"] is None and all(r["loss"] > 0 for r in records[1:] if r["kind"] == "train")
