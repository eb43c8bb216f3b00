"""Writes checkpoints without end, for tests that kill it or let the disk run full.

python -m tests.checkpoint_writer FOLDER [--until-full] [--blind]
"""

import argparse
import json
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np

from src.engine import checkpoint_files
from src.engine.checkpoint_files import LATEST, OPTIMIZER, STATE, WEIGHTS, clear_debris, newest_good, numbers_of
from src.engine.tensor_files import tensor_blocks

SIZE = 60_000  # values of the weights; three times as many in all
SMALL = 50  # values, where size does not matter
BEST_EVERY, KEEP = 3, 2


def names(root: Path) -> set[str]:
    """What is in a folder."""
    return {path.name for path in root.iterdir()}


def files_of(step: int, size: int = SIZE) -> dict[str, list]:
    """Files whose every value is the step."""
    return {
        WEIGHTS: tensor_blocks({"a": np.full(size, step, np.float32)}, {"step": str(step)}),
        OPTIMIZER: tensor_blocks({"m": np.full((2, size), step, np.float32)}, {}),
        STATE: [json.dumps({"step": step, "best_step": step - step % BEST_EVERY}).encode()],
    }


def write(root: Path, step: int, size: int = SIZE, keep: int = KEEP, best: bool | None = None) -> Path:
    """The checkpoint of a step; every third is the best so far."""
    best = step % BEST_EVERY == 0 if best is None else best
    return checkpoint_files.publish(root, step, files_of(step, size), best=best, keep=keep)


def write_until_full(root: Path) -> dict:
    """Writes and keeps more and more checkpoints until there is no room; what happened then."""
    for step in range(1, 1000):
        try:
            write(root, step, keep=1000)
        except OSError as error:
            latest, damaged = newest_good(root)
            return {
                "errno": error.errno, "text": error.strerror, "step": step, "latest": latest.name,
                "link": (root / LATEST).resolve().name, "damaged": len(damaged),
                "names": sorted(names(root)),
            }  # fmt: skip
    raise RuntimeError("the disk never ran full")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--until-full", action="store_true")
    parser.add_argument("--blind", action="store_true", help="without looking how much room there is")
    arguments = parser.parse_args()
    root = arguments.root / "checkpoints"
    if arguments.blind:
        usage = namedtuple("usage", "free")
        shutil.disk_usage = lambda path: usage(10**12)
    if arguments.until_full:
        print(json.dumps(write_until_full(root)))
        return
    clear_debris(root)
    newest, _ = newest_good(root)
    step = numbers_of(newest)[0] if newest else 0
    print("ready", flush=True)
    while True:
        step += 1
        write(root, step)


if __name__ == "__main__":
    main()
