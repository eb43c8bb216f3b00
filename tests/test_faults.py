"""A fault campaign: a tiny training is killed (-9) at random moments and goes on each time; its end must not differ.

Run by `bash scripts/test.sh --faults`; minutes long.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from src.engine.run_logs import TABLES
from src.engine.weights import read_tensors
from src.log import read_metrics
from tests.commands import ROOT
from tests.test_run_logs import rows
from tests.tiny import write_config

KILLS = 24
DELAYS = {"step": 0.5, "evaluation": 0.1, "checkpoint": 0.01}  # longest, in seconds, from the sight of such a moment
EVALUATE_EVERY = 6  # a multiple of what is logged, so that the log tells when an evaluation begins
SETTINGS = (
    "train.steps=60", f"train.evaluate_every={EVALUATE_EVERY}", "train.checkpoint_every=2", "train.log_every=3",
    "data.options.val_count=16", "model.head.name=fcn", "loss.name=cross_entropy",  # a head that compiles soon
)  # fmt: skip
CLOCK = ("images_per_s", "waiting")
FARTHEST = 12  # steps that a start makes at least before it is killed: 1 to so many
LONGEST = 300.0  # seconds of a start and its share of the run


class Campaign:
    """Runs one after the other, all with the same settings, in several starts each; counts what the kills hit."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.config = root, write_config(root)
        self.random = random.Random(seed)
        self.hits: Counter = Counter()
        self.runs: list[Path] = []

    def start(self) -> subprocess.Popen:
        command = [
            sys.executable, "train.py", "--config", self.config, *SETTINGS, f"output_dir={self.runs[-1].parent}",
            f"device.compile_cache={self.root / 'cache'}",
        ]  # fmt: skip
        with (self.root / "console.txt").open("a") as log:
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def begin(self) -> None:
        """Makes way for a new run."""
        self.runs.append(self.root / f"run{len(self.runs)}" / "tiny")

    def finish(self) -> None:
        """Lets the run go to its end."""
        assert self.start().wait(LONGEST) == 0, (self.root / "console.txt").read_text()[-3000:]

    def strike(self, moment: str) -> None:
        """Starts the run and kills it at a random instant of such a moment; where it ends before, a new one begins."""
        state = self.runs[-1] / "checkpoints" / "latest" / "state.json"
        step, began = json.loads(state.read_text())["step"] if state.is_file() else 0, time.time()
        step += self.random.randint(1, FARTHEST)
        process = self.start()
        while process.poll() is None:
            assert time.time() - began < LONGEST
            if moment in self.moments(step, began):
                time.sleep(self.random.uniform(0.0, DELAYS[moment]))
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.0005)
        if process.wait() == -signal.SIGKILL:
            self.hits[self.moments(step, began)[-1]] += 1
        else:
            assert process.returncode == 0, (self.root / "console.txt").read_text()[-3000:]
            self.begin()

    def moments(self, step: int, began: float) -> list[str]:
        """What a run that was started at some time is doing once it has come to a step, by its files; [] before."""
        metrics = self.runs[-1] / "metrics.jsonl"
        records = read_metrics(metrics) if changed(metrics) > began else []
        if not records or records[-1]["step"] < step:
            return []
        last = records[-1]
        found = ["step"]
        if last["kind"] == "train" and last["step"] % EVALUATE_EVERY == 0:
            found.append("evaluation")  # has no scores yet
        drafts = (metrics.parent / "checkpoints").glob("*.incomplete")
        return [*found, "checkpoint"] if any(changed(draft) > began for draft in drafts) else found


def changed(path: Path) -> float:
    """When a file or folder was changed last; never, for one that has just gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def contents(run: Path) -> tuple:
    """Everything that must not depend on kills: tensors' bytes, state, logs without the clock."""
    latest = run / "checkpoints" / "latest"
    tensors = [read_tensors(latest / name) for name in ("weights.safetensors", "optimizer.safetensors")]
    values = [({name: array.tobytes() for name, array in arrays.items()}, metadata) for arrays, metadata in tensors]
    records = [{k: v for k, v in r.items() if k not in CLOCK} for r in read_metrics(run / "metrics.jsonl")]
    tables = [rows(run / name) for name in TABLES.values()]
    cells = [[{k: v for k, v in row.items() if k not in CLOCK} for row in table] for table in tables]
    return values, json.loads((latest / "state.json").read_text()), records, cells


@pytest.mark.faults
def test_kills_at_random_moments_leave_no_trace(tmp_path, capsys):
    campaign = Campaign(tmp_path, int(os.environ.get("ECENET_FAULT_SEED", "0")))
    campaign.begin()
    campaign.finish()
    campaign.begin()
    for attempt in range(3 * KILLS):
        if campaign.hits.total() >= KILLS:
            break
        campaign.strike(list(DELAYS)[attempt % len(DELAYS)])
    campaign.finish()
    expected, *ends = map(contents, campaign.runs)
    lost = sum(end != expected for end in ends)
    with capsys.disabled():
        print(f"\n{campaign.hits.total()} kills {dict(campaign.hits)} over {len(ends)} runs; {lost} runs differ")
    assert lost == 0
    assert campaign.hits.total() >= KILLS and set(campaign.hits) == set(DELAYS)
