"""One process of a data-parallel training step that has one core to itself, and times its steps.

Arguments: file with the row (JSON), number of timed steps, folder for the times (RANK.json).
By turns: a step as train.py makes it, and the same step without any all-reduce; the difference is what the other
processes cost, waiting for them included.
"""

import os
import sys

RANK = int(os.environ.get("RANK_ID", "0"))
CORES = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, {CORES[RANK % len(CORES)]})  # before MindSpore counts the cores for its threads
os.environ["OMP_NUM_THREADS"] = "1"

# isort: split
import json  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

import src  # noqa: E402, F401  (before MindSpore, whose log level it sets)

# isort: split
from benchmarks.workers.mindspore_worker import COLUMNS, create_network  # noqa: E402
from benchmarks.workers.rows import draw_batch  # noqa: E402
from src import distributed  # noqa: E402
from src.config import OptimizerConfig  # noqa: E402
from src.engine.optimizer import create_optimizer  # noqa: E402
from src.engine.train_step import TrainStep, draw_noise, run_step  # noqa: E402
from src.losses import batch_counts, create_loss  # noqa: E402
from src.models.layers import synchronise_norms  # noqa: E402

WARM_UP = 2  # steps that compile and fill caches


def create_step(row: dict, rank: int, world_size: int) -> Callable[[], None]:
    """A training step on the rank's share of a fixed batch; world_size 1: without all-reduce."""
    distributed.set_seed(row["seed"])
    network = create_network(row)
    synchronise_norms(network, world_size)
    settings = OptimizerConfig(**row["optimizer"])
    loss, optimizer = create_loss(row["loss"], row["classes"]), create_optimizer(network, settings)
    cell = TrainStep(network, loss, optimizer, COLUMNS, clip_norm=settings.clip_norm, world_size=world_size)
    batch = draw_batch({**row, "seed": row["seed"] + rank})
    noise, counts = draw_noise(network.noise_rates, row["seed"], 0, row["batch"]), batch_counts(batch)
    return lambda: run_step(cell, optimizer.inputs(0, settings.lr), noise, [batch], np.asarray(counts))


def main() -> None:
    """Times steps with and without all-reduce by turns."""
    row_file, steps, folder = sys.argv[1:]
    row = json.loads(Path(row_file).read_text(encoding="utf-8"))
    rank, world_size = distributed.setup("CPU", "graph")
    kinds = {"step": create_step(row, rank, world_size)}
    if world_size > 1:
        kinds["without"] = create_step(row, rank, 1)
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(WARM_UP + int(steps)):
        for name, step in kinds.items():
            if world_size > 1:
                distributed.sum_counts(np.zeros(1, np.int64))  # all begin together
            began = time.perf_counter()
            step()
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - began)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(seconds), encoding="utf-8")


if __name__ == "__main__":
    main()
