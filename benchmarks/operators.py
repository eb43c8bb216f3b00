"""Where the time of a training step or an inference goes: milliseconds of every operator, by type and by part.

MindSpore's profiler times each kernel; operators of the forward and of the gradients carry the name of the cell they
come from, where the compiler has kept it (products that it rewrites lose theirs and count as `unnamed`).

Run from the repository root: python -m benchmarks.operators [--row ROW]
"""

import argparse
import csv
import tempfile
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import src  # noqa: F401  (before MindSpore, whose log level it sets)

# isort: split
import numpy as np
from mindspore.profiler import Profiler

from benchmarks.results_file import RESULTS, add_result, describe_run
from benchmarks.workers.mindspore_worker import create_network, create_step
from benchmarks.workers.rows import ROWS, SMALL_ROWS, describe, draw_batch
from src import cli, distributed
from src.engine.graphs import call_graph
from src.engine.predict_net import PredictNet
from src.engine.train_step import draw_noise
from src.log import get_console
from src.losses import batch_counts

PARTS = {"backbone-": "backbone", "head-": "head", "loss-": "loss", "optimizer-": "optimiser"}
RATE = 1e-7
WARM_UP = 2
SLOWEST = 10


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line, profiles one call, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = [*ROWS, *SMALL_ROWS]
    parser.add_argument("--row", choices=rows, default="train_vit_base", metavar="ROW",
                        help=f"{', '.join(rows)} (default train_vit_base)")  # fmt: skip
    parser.add_argument("--out", default=str(RESULTS / "operators.json"), metavar="FILE", help="results, JSON")
    options = parser.parse_args(arguments)
    file, run = cli.writable(options.out), describe_run("benchmarks.operators")
    row = describe((ROWS | SMALL_ROWS)[options.row], reference=False)
    operators = profile(row)
    result = {"run": run, "title": row["title"], **summarise(operators)}
    add_result(Path(file), options.row, result)
    for name, milliseconds in result["types"].items():
        get_console().print(f"{name:24s} {milliseconds:9.1f} ms {milliseconds / result['total']:6.1%}")


def profile(row: dict) -> list[dict]:
    """Type, name and milliseconds of every operator of one warm call."""
    distributed.setup("CPU", "graph")
    distributed.set_seed(row["seed"])
    call = create_call(row)
    for _ in range(WARM_UP):
        call()
    with tempfile.TemporaryDirectory(prefix="operators_") as folder:
        profiler = Profiler(start_profile=False, output_path=folder)
        profiler.start()
        call()
        profiler.stop()
        profiler.analyse()
        (table,) = Path(folder).rglob("cpu_op_detail_info_*.csv")
        with table.open(encoding="utf-8", newline="") as lines:
            return [
                {"type": line["op_type"], "name": line["full_op_name"], "ms": float(line["op_total_time(ms)"])}
                for line in csv.DictReader(lines)
            ]


def create_call(row: dict) -> Callable[[], object]:
    """A training step, or one image through the graph that is exported."""
    network = create_network(row)
    if row["mode"] == "infer":
        graph = PredictNet(network, tuple(row["size"]), "labels")
        image = np.random.default_rng(row["seed"]).integers(0, 256, (*row["size"], 3), np.uint8)
        return partial(call_graph, graph, image)
    batch = draw_batch(row)
    noise = draw_noise(network.noise_rates, row["seed"], 0, row["batch"])[0]
    return partial(create_step(row, network, batch, noise, batch_counts(batch)), RATE)


def summarise(operators: list[dict]) -> dict:
    """Total, milliseconds by type and by part in falling order, and the slowest operators."""
    types, parts = defaultdict(float), defaultdict(float)
    for operator in operators:
        types[operator["type"]] += operator["ms"]
        parts[part_of(operator["name"])] += operator["ms"]
    slowest = sorted(operators, key=lambda operator: -operator["ms"])[:SLOWEST]
    return {"total": sum(types.values()), "types": falling(types), "parts": falling(parts), "slowest": slowest}


def part_of(name: str) -> str:
    """Part of the network that an operator's full name tells."""
    return next((part for sign, part in PARTS.items() if sign in name), "unnamed")


def falling(sums: dict[str, float]) -> dict[str, float]:
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


if __name__ == "__main__":
    cli.run(main)
