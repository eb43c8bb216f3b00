"""Memory and time of a backbone's forward and gradients with and without `recompute`, each in a process of its own.

Memory is the peak resident set of the process, less what it held once the backbone was built; time is that of the
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
import numpy as np
from mindspore import Tensor

from benchmarks.workers.rows import ROWS, SMALL_ROWS, describe
from benchmarks.workers.serving import resident_memory
from src import cli, distributed
from src.engine.benchmark import BackbonePass
from src.engine.timing import peak_memory
from src.log import get_console
from src.models import BACKBONES, build

ROOT = Path(__file__).resolve().parents[1]
RUNS = 3  # of which the first compiles


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
            f"{found['cpu_seconds']:.2f} s of processor, gradients add up to {found['sum']!r}"
        )


def measure(name: str, recompute: bool) -> dict[str, float]:
    """Bytes of memory, processor seconds of the cheaper run after the first, sum of all gradients."""
    row = describe((ROWS | SMALL_ROWS)[name])
    distributed.setup("CPU", "graph")
    distributed.set_seed(row["seed"])
    settings = {**row["model"]["backbone"], "recompute": recompute}
    backbone = build("model.backbone", BACKBONES, settings, tuple(row["size"]))
    before, random = resident_memory(), np.random.default_rng(row["seed"])
    shapes = [(3, *row["size"]), *[(c, *grid) for c, grid in zip(backbone.channels, backbone.grids, strict=True)]]
    image, *maps = [Tensor(random.standard_normal((row["batch"], *shape), np.float32)) for shape in shapes]
    noise = Tensor(np.ones((row["batch"], len(backbone.noise_rates)), np.float32))
    cell, seconds, total = BackbonePass(backbone), [], 0.0
    for _ in range(RUNS):
        started = time.process_time()
        total = sum(float(gradient.asnumpy().sum(dtype=np.float64)) for gradient in cell(image, noise, *maps)[1])
        seconds.append(time.process_time() - started)
    return {"memory": peak_memory() - before, "cpu_seconds": min(seconds[1:]), "sum": total}


if __name__ == "__main__":
    cli.run(main)
