"""Files of results: what was measured, on what, when, by which command."""

import json
import os
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path

RESULTS = Path("benchmarks/results")


def describe_run(module: str) -> dict:
    """Processor, cores, load of other programs before the start, date and command of this run."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else "unknown", "cores": os.cpu_count(), "load_before": os.getloadavg()[0],
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
    }  # fmt: skip


def read_results(path: Path) -> dict:
    """The entries of a results file; none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def add_result(path: Path, name: str, result: dict) -> None:
    """Writes one entry into the file, in place of an older one of that name; all others stay."""
    text = json.dumps({**read_results(path), name: result}, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
