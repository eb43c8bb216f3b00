"""Real trainings in two processes: one is killed; and, as on two machines, the link between them is cut.

Two machines are two network namespaces of this one.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import train
from src.config import load_config
from src.engine.weights import read_tensors
from src.launching.checks import left_over
from src.launching.processes import read_identity
from src.log import read_metrics
from tests.commands import ROOT
from tests.launching import free_port
from tests.test_distributed import CHANGES, STEPS
from tests.tiny import CONFIG

pytestmark = pytest.mark.slow

TOTAL, EVERY = 60, 5  # steps, steps between checkpoints
NOTICED = 60.0  # seconds from the cut to the end of both sides


@dataclass(frozen=True)
class Hosts:
    """Names of two namespaces with addresses on one link."""

    names: tuple[str, str]
    addresses: tuple[str, str] = ("10.251.77.1", "10.251.77.2")

    def link(self, state: str) -> None:
        """Sets the link `up` or `down`, as seen from the first host."""
        ip("-n", self.names[0], "link", "set", "wire", state)

    def start(self, config: Path) -> list[subprocess.Popen]:
        """Starts the launcher on both."""
        shared = {"NNODES": "2", "MASTER_ADDR": self.addresses[0], "MASTER_PORT": "8118", "CLUSTER_TIMEOUT": "120"}
        command = [sys.executable, "tools/launch.py", str(config), "1"]
        return [
            subprocess.Popen(
                ["ip", "netns", "exec", name, *command], cwd=ROOT, env={**os.environ, **shared, "NODE_RANK": str(node)},
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
            for node, name in enumerate(self.names)
        ]  # fmt: skip


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Two namespaces; the test is skipped where this user may not make them."""
    names = tuple(f"ecenet{os.getpid()}{letter}" for letter in "ab")
    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        pair = Hosts(names)
        ip("link", "add", "wire", "netns", names[0], "type", "veth", "peer", "name", "wire", "netns", names[1])
        for name, address in zip(names, pair.addresses, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "wire")
            ip("-n", name, "link", "set", "wire", "up")
            ip("-n", name, "link", "set", "lo", "up")
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        for name in made:
            ip("netns", "delete", name)
        pytest.skip(f"no right to make network namespaces: {getattr(error, 'stderr', None) or error}")
    yield pair
    for name in names:
        ip("netns", "delete", name)


def write_run(root: Path, name: str, batch_size: int) -> Path:
    """A configuration with checkpoints every few steps and one evaluation, at the end."""
    text = CONFIG.format(root=root).replace("name: tiny", f"name: {name}")
    for old, new in (*CHANGES, (f"steps: {STEPS}", f"steps: {TOTAL}"), ("batch_size: 2", f"batch_size: {batch_size}")):
        text = text.replace(old, new)
    text = text.replace(f"checkpoint_every: {STEPS}", f"checkpoint_every: {EVERY}")
    text = text.replace(f"evaluate_every: {STEPS}", f"evaluate_every: {TOTAL}")
    (root / f"{name}.yaml").write_text(text)
    return root / f"{name}.yaml"


def await_step(run: Path, step: int) -> None:
    """Waits until a run has logged a step."""
    until = time.monotonic() + 300
    while not (run / "metrics.jsonl").exists() or read_metrics(run / "metrics.jsonl")[-1]["step"] < step:
        assert time.monotonic() < until, f"{run} did not get to step {step}"
        time.sleep(0.1)


def assert_trained_as_one(root: Path, name: str) -> None:
    """The run's steps are logged once each, and its weights are those of one process that was never disturbed."""
    steps = [record["step"] for record in read_metrics(root / name / "metrics.jsonl") if record["kind"] == "train"]
    assert steps == list(range(1, TOTAL + 1))
    train.train(load_config(write_run(root, "one", 4)))
    weights, expected = (
        read_tensors(root / run / "checkpoints" / "latest" / "weights.safetensors")[0] for run in (name, "one")
    )
    for key, value in expected.items():
        np.testing.assert_allclose(weights[key], value, rtol=0, atol=1e-4, err_msg=key)


def test_a_killed_rank_ends_the_others_and_the_run_is_started_again(tmp_path):
    config, run = write_run(tmp_path, "two", 2), tmp_path / "two"
    environ = {**os.environ, "MASTER_PORT": str(free_port()), "RETRIES": "1"}
    command = [sys.executable, "tools/launch.py", str(config), "2"]
    process = subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True)
    await_step(run, EVERY + 2)
    os.kill(read_identity(run / "logs" / "start_001_node_0" / "worker_1.pid").pid, signal.SIGKILL)
    killed = time.monotonic()
    for line in process.stderr:
        if "starts again" in line:
            break
    print(f"{time.monotonic() - killed:.0f} s from the kill to the end of all processes")
    assert time.monotonic() - killed < NOTICED
    _, rest = process.communicate(timeout=300)
    assert process.returncode == 0, rest
    assert "going on from" in (run / "logs" / "start_002_node_0" / "worker_0.log").read_text()
    assert_trained_as_one(tmp_path, "two")


def test_a_cut_link_is_noticed_and_the_run_goes_on_from_its_checkpoint(hosts, tmp_path):
    config, run = write_run(tmp_path, "two", 2), tmp_path / "two"
    processes = hosts.start(config)
    await_step(run, EVERY + 2)
    hosts.link("down")
    cut = time.monotonic()
    for process in processes:
        _, err = process.communicate(timeout=300)
        print(f"ended {time.monotonic() - cut:.0f} s after the cut with code {process.returncode}: {err}")
        assert process.returncode not in (0, 2)
    assert time.monotonic() - cut < NOTICED
    assert left_over(run / "logs") == []
    assert read_metrics(run / "metrics.jsonl")[-1]["step"] < TOTAL

    hosts.link("up")
    for process in hosts.start(config):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert "going on from" in (run / "logs" / "start_002_node_0" / "worker_0.log").read_text()
    assert_trained_as_one(tmp_path, "two")
