"""Memory and time of a training step with and without model.backbone.recompute, each in a process of its own.

Memory is the peak resident set of the process, less what it held before the network was built; time is that of the
processor, all threads together, so that other programs matter less.

Run from the repository root: python -m benchmarks.recomputing
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import src  # noqa: F401  (before MindSpore, whose log level it sets)

# isort: split
from benchmarks.workers.mindspore_worker import create_network, create_step
from benchmarks.workers.rows import ROWS, SMALL_ROWS, describe, draw_batch
from benchmarks.workers.serving import resident_memory
from src import cli, distributed
from src.engine.timing import peak_memory
from src.engine.train_step import draw_noise
from src.log import get_console
from src.losses import batch_counts

ROOT = Path(__file__).resolve().parents[1]
STEPS = 3  # of which the first compiles


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line; measures one variant, or starts a process for each and prints a line for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = [name for name, row in (ROWS | SMALL_ROWS).items() if row.mode == "train"]
    parser.add_argument("--row", choices=rows, default="train_vit_base", metavar="ROW",
                        help=f"{', '.join(rows)} (default train_vit_base)")  # fmt: skip
    parser.add_argument("--only", choices=("false", "true"), help="measure one variant, printed as JSON")
    options = parser.parse_args(arguments)
    if options.only:
        print(json.dumps(measure(options.row, options.only == "true")))
        return
    for recompute in ("false", "true"):
        command = [sys.executable, "-m", "benchmarks.recomputing", "--row", options.row, "--only", recompute]
        found = json.loads(subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout)
        get_console().print(
            f"{options.row} recompute={recompute}: {found['memory'] / 2**20:.0f} MiB, "
            f"{found['cpu_seconds']:.2f} s of processor a step, gradient norm {found['norm']!r}"
        )


def measure(name: str, recompute: bool) -> dict[str, float]:
    """Bytes of memory, processor seconds of the cheapest step after the first, gradient norm of the first."""
    row = describe((ROWS | SMALL_ROWS)[name])
    distributed.setup("CPU", "graph")
    distributed.set_seed(row["seed"])
    before = resident_memory()
    row["model"]["backbone"] = {**row["model"]["backbone"], "recompute": recompute}
    network, batch = create_network(row), draw_batch(row)
    noise = draw_noise(network.noise_rates, row["seed"], 0, row["batch"])[0]
    step = create_step(row, network, batch, noise, batch_counts(batch))
    norm, seconds = step(row["optimizer"]["lr"])["norm"], []
    for _ in range(STEPS - 1):
        started = time.process_time()
        step(row["optimizer"]["lr"])
        seconds.append(time.process_time() - started)
    return {"memory": peak_memory() - before, "cpu_seconds": min(seconds), "norm": norm}


if __name__ == "__main__":
    cli.run(main)
