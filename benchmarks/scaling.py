"""Images a second of a training step in 1 process and in 2, each with one core and the same batch per process.

Efficiency is images/s of 2 processes over twice that of 1; the all-reduce's share is the time that a step takes longer
than the same step without any all-reduce, waiting for the other process included.

Run from the repository root: python -m benchmarks.scaling
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

from benchmarks.results_file import RESULTS, add_result, describe_run
from benchmarks.workers.rows import ROWS, SMALL_ROWS, describe
from src import cli
from src.launching.checks import Cluster, check_port, read_number
from src.launching.group import Limits, start_group, watch
from src.launching.processes import adopt_orphans
from src.launching.stopping import StopRequest
from src.log import get_console

WORKER = "benchmarks.workers.scaling_worker"
PROCESSES = (1, 2)


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line, runs both sizes, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = [name for name, row in (ROWS | SMALL_ROWS).items() if row.mode == "train"]
    parser.add_argument("--row", choices=rows, default="train_vit_tiny", metavar="ROW",
                        help=f"{', '.join(rows)} (default train_vit_tiny)")  # fmt: skip
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="timed steps of each kind (default 10)")
    parser.add_argument("--out", default=str(RESULTS / "scaling.json"), metavar="FILE", help="results, JSON")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps {options.steps}: at least 1")
    file, run = cli.writable(options.out), describe_run("benchmarks.scaling")
    row = describe((ROWS | SMALL_ROWS)[options.row])
    adopt_orphans()
    seconds = {count: measure(row, count, options.steps) for count in PROCESSES}
    result = summarise(seconds, row["batch"])
    add_result(Path(file), options.row, {"run": run, "title": row["title"], **result})
    for count, entry in result["processes"].items():
        get_console().print(f"{options.row}, {count} processes: {entry['images_per_s']:.3f} images/s")
    get_console().print(f"efficiency {result['efficiency']:.2f}, all-reduce {result['all_reduce_share']:.0%} of a step")


def measure(row: dict, count: int, steps: int) -> list[dict[str, list[float]]]:
    """Seconds of every step, by kind, of each rank. Raises RuntimeError where a process fails."""
    port = read_number(os.environ, "MASTER_PORT", 8118, 1024, 65535)
    cluster = Cluster(count, port=port)
    check_port(cluster)
    with tempfile.TemporaryDirectory(prefix="scaling_") as name:
        folder = Path(name)
        (folder / "row.json").write_text(json.dumps(row), encoding="utf-8")
        command = ["-m", WORKER, str(folder / "row.json"), str(steps), str(folder)]
        group, problems = start_group(cluster, folder, command, Limits()), []
        if watch(group, StopRequest(), Limits(), no_echo, problems.append):
            raise RuntimeError("\n".join(problems))
        return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(count)]


def no_echo() -> None:
    """The processes print nothing that is worth reading."""


def summarise(seconds: dict[int, list[dict[str, list[float]]]], batch: int) -> dict:
    """Images/s by number of processes, efficiency of the largest and its share of time in all-reduce.

    A step lasts as long as that of the slowest rank; figures are of the median step.
    """
    steps = {count: slowest(ranks, "step") for count, ranks in seconds.items()}
    speeds = {count: count * batch / statistics.median(times) for count, times in steps.items()}
    most = max(seconds)
    without = statistics.median(slowest(seconds[most], "without"))
    return {
        "processes": {str(count): {"images_per_s": speeds[count], "seconds": steps[count]} for count in seconds},
        "efficiency": speeds[most] / (most * speeds[1]),
        "all_reduce_share": 1.0 - without / statistics.median(steps[most]),
    }


def slowest(ranks: list[dict[str, list[float]]], kind: str) -> list[float]:
    """Seconds of each step on the rank that took longest."""
    return [max(times) for times in zip(*(rank[kind] for rank in ranks), strict=True)]


if __name__ == "__main__":
    cli.run(main)
