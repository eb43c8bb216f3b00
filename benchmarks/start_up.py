"""Seconds from the start of a process to the end of its first training step: cold, and with the compile cache.

Every start is a fresh process. `cold` has no cache, `filling` an empty one, `cached` the one that `filling` left.

Run from the repository root: python -m benchmarks.start_up
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results_file import RESULTS, add_result, describe_run
from benchmarks.workers.rows import ROWS, SMALL_ROWS, describe
from src import cli
from src.log import get_console, progress

WORKER = "benchmarks.workers.start_up_worker"
ROOT = Path(__file__).resolve().parents[1]
PHASES = ("import", "build", "first_step", "total", "second_step")


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line, starts process after process, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = [name for name, row in (ROWS | SMALL_ROWS).items() if row.mode == "train"]
    parser.add_argument("--row", choices=rows, default="train_vit_base", metavar="ROW",
                        help=f"{', '.join(rows)} (default train_vit_base)")  # fmt: skip
    parser.add_argument("--starts", type=int, default=3, metavar="N", help="starts of each kind (default 3)")
    parser.add_argument("--out", default=str(RESULTS / "start_up.json"), metavar="FILE", help="results, JSON")
    options = parser.parse_args(arguments)
    if options.starts < 1:
        parser.error(f"--starts {options.starts}: at least 1")
    file, run = cli.writable(options.out), describe_run("benchmarks.start_up")
    row = describe((ROWS | SMALL_ROWS)[options.row])
    times = measure(row, options.starts)
    add_result(Path(file), options.row, {"run": run, "title": row["title"], "starts": times})
    for kind, entries in times.items():
        totals = ", ".join(f"{entry['total']:.1f}" for entry in entries)
        get_console().print(f"{options.row} {kind}: {totals} s to the end of the first step")


def measure(row: dict, starts: int) -> dict[str, list[dict[str, float]]]:
    """Seconds by phase of every start, by kind; the kinds take turns, so that a busy spell slows all alike."""
    times: dict[str, list[dict[str, float]]] = {"cold": [], "filling": [], "cached": []}
    with progress(3 * starts, "starts") as advance:
        for _ in range(starts):
            with tempfile.TemporaryDirectory(prefix="start_up_") as folder:
                cache = Path(folder) / "cache"
                for kind, entries in times.items():
                    entries.append(start(row, Path(folder), None if kind == "cold" else cache))
                    advance()
    return times


def start(row: dict, folder: Path, cache: Path | None) -> dict[str, float]:
    """Runs one process to the end; its seconds by phase. Raises RuntimeError with the end of its output if it fails."""
    row_file, times_file = folder / "row.json", folder / "times.json"
    row_file.write_text(json.dumps(row), encoding="utf-8")
    times_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", WORKER, str(row_file), str(times_file), str(time.time())]
    result = subprocess.run(
        command + ([str(cache)] if cache else []), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if result.returncode or not times_file.is_file():
        tail = result.stdout[-2000:]
        raise RuntimeError(f"{WORKER} ended with code {result.returncode}; the end of its output:\n{tail}")
    return json.loads(times_file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    cli.run(main)
