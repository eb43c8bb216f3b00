"""Seconds that `tools/doctor.py data` takes for pairs of CamVid's size, start of the process included.

The pairs are CamVid's own, under new names as often as needed, so every file is read and decoded. Needs ECENET_DATA.

Run from the repository root: python -m benchmarks.doctor
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results_file import RESULTS, add_result, describe_run
from src import cli
from src.data.datasets import camvid, camvid_classes
from src.log import get_console

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "config/ecenet/vit_tiny_camvid.yaml"
VAL_SHARE = 5  # one pair in so many goes to the validation split


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line, writes the pairs, times the command, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000, metavar="N", help="pairs (default 1000)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="runs of the command (default 3)")
    parser.add_argument("--out", default=str(RESULTS / "doctor.json"), metavar="FILE", help="results, JSON")
    options = parser.parse_args(arguments)
    if min(options.pairs, options.rounds) < 1:
        parser.error("--pairs and --rounds: at least 1")
    file, run = cli.writable(options.out), describe_run("benchmarks.doctor")
    with tempfile.TemporaryDirectory(prefix="doctor_") as name:
        write_pairs(Path(name), options.pairs)
        runs = [time_command(Path(name)) for _ in range(options.rounds)]
    times = {key: [entry[key] for entry in runs] for key in runs[0]}
    add_result(Path(file), f"pairs/{options.pairs}", {"run": run, **times})
    whole, reading, processor = (times[key] for key in ("seconds", "reading_seconds", "cpu_seconds"))
    get_console().print(
        f"{options.pairs} pairs: {min(whole):.1f} to {max(whole):.1f} s, start of the process included; reading them "
        f"{min(reading):.1f} to {max(reading):.1f} s; processor time {min(processor):.1f} s",
        soft_wrap=True,
    )


def write_pairs(root: Path, count: int) -> None:
    """A data set `folder` of so many pairs."""
    items = camvid(None, "train") + camvid(None, "val")
    for i in range(count):
        item, split = items[i % len(items)], "train" if i % VAL_SHARE else "val"
        for kind, source in (("images", item.image), ("labels", item.label)):
            place = root / kind / split / f"{i:06d}{source.suffix}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(source.read_bytes())
    classes = camvid_classes(None)
    table = {value: "ignore" if k == 255 else classes.names[k] for value, k in classes.table.items()}
    lines = [f"names: {json.dumps(classes.names)}", "table:", *[f"  {value}: {name}" for value, name in table.items()]]
    (root / "classes.yaml").write_text("\n".join(lines) + "\n")


def time_command(root: Path) -> dict[str, float]:
    """Seconds of a run of the command, of its reading alone, and of processor time. RuntimeError if it does not run."""
    report, start = root / "report.json", time.perf_counter()
    command = [sys.executable, "tools/doctor.py", "data", "--config", CONFIG, "--json", str(report),
               "data.dataset=folder", f"data.root={root}"]  # fmt: skip
    before = cpu_seconds()
    result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - before
    if not report.is_file():
        raise RuntimeError(f"the doctor ended with code {result.returncode}:\n{result.stderr[-2000:]}")
    reading = json.loads(report.read_text(encoding="utf-8"))["facts"]["seconds"]
    return {"seconds": seconds, "reading_seconds": reading, "cpu_seconds": cpu}


def cpu_seconds() -> float:
    """Of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    cli.run(main)
