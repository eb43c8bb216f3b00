"""Stands in for train.py: does what FAKE_PLAN, a JSON object {rank or "scheduler": [step, ...]}, says; default: ends.

Steps: "print TEXT", "sleep SECONDS", "exit CODE", "first exit CODE" (only the first process of a rank), "kill",
"trap" (a stop signal is noted, then exit 85), "busy" (takes no notice of one SIGINT, ends with 130 at the next),
"deaf" (ignores SIGTERM), "child" (leaves a child in its group, whose id goes to child.pid in FAKE_FOLDER), "wait FILE"
(until it exists in FAKE_FOLDER).
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def stop(number: int, _frame) -> None:
    """What train.py does at a stop signal, in short."""
    print(f"got {signal.Signals(number).name}", flush=True)
    time.sleep(0.2)
    sys.exit(85)


def act(step: str, name: str, folder: Path) -> None:
    """Does one step of the plan."""
    verb, _, rest = step.partition(" ")
    mark = folder / f"{name}.started"
    if verb == "print":
        print(rest, flush=True)
    elif verb == "sleep":
        time.sleep(float(rest))
    elif verb == "exit":
        sys.exit(int(rest))
    elif verb == "first" and not mark.exists():
        mark.touch()
        act(rest, name, folder)
    elif verb == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif verb == "trap":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, stop)
        (folder / f"{name}.trapped").touch()
    elif verb == "busy":
        signal.signal(signal.SIGINT, lambda *_: signal.signal(signal.SIGINT, lambda *_: os._exit(130)))
        (folder / f"{name}.trapped").touch()
    elif verb == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif verb == "child":
        child = subprocess.Popen(["sleep", "60"])
        (folder / "child.pid").write_text(str(child.pid))
    elif verb == "wait":
        while not (folder / rest).exists():
            time.sleep(0.02)


def main() -> None:
    """Finds this process's plan."""
    name = "scheduler" if os.environ.get("MS_ROLE") == "MS_SCHED" else os.environ.get("RANK_ID", "alone")
    print(f"arguments {sys.argv[1:]}", flush=True)
    for step in json.loads(os.environ.get("FAKE_PLAN", "{}")).get(name, []):
        act(step, name, Path(os.environ["FAKE_FOLDER"]))


if __name__ == "__main__":
    main()
