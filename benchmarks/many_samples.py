"""Seconds from the start of a process to its first training batch of a very large folder, without and with its index.

Makes N pairs of images and masks as hard links to a few files, in folders of 1,000 or all in one, and starts a fresh
process several times: the first lists the folders and keeps an index, the others map it.

Run from the repository root: python -m benchmarks.many_samples --place DIR
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from src import cli
from src.data.listing import require_folder
from src.log import get_console, progress

ROOT = Path(__file__).resolve().parents[1]
LINKS = 1000  # to one file; file systems allow some ten thousand
SIZE = (64, 64)  # H, W
BATCH = 8


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line; with --start, is one of the processes that are timed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", type=Path, metavar="DIR", help="where to make the data (default: the temporary one)")
    parser.add_argument("--pairs", type=int, default=1_000_000, metavar="N", help="default: 1,000,000")
    parser.add_argument("--flat", action="store_true", help="all files in one folder")
    parser.add_argument("--starts", type=int, default=3, metavar="N", help="processes in turn (default: 3)")
    parser.add_argument("--start", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.start:
        print(json.dumps(start(options.start)))
        return
    if options.place:
        require_folder(options.place, "make it, or leave out --place for the temporary folder")
    place = Path(tempfile.mkdtemp(prefix="many_samples_", dir=options.place))
    try:
        make_pairs(place / "data", options.pairs, options.flat)
        time.sleep(2.5)  # an index of folders that changed just now would not be trusted
        for number in range(options.starts):
            times = run(place)
            text = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in times.items())
            get_console().print(f"start {number + 1}: {text}")
    finally:
        shutil.rmtree(place)


def make_pairs(root: Path, count: int, flat: bool) -> None:
    """images/train and labels/train with `count` pairs."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    mask = Image.fromarray(rng.integers(0, 2, SIZE, dtype=np.uint8))
    with progress(count, "making pairs") as advance:
        for first in range(0, count, LINKS):
            for kind, picture, suffix in (("images", image, ".jpg"), ("labels", mask, ".png")):
                folder = root / kind / "train" if flat else root / kind / "train" / f"part_{first // LINKS:05d}"
                folder.mkdir(parents=True, exist_ok=True)
                picture.save(folder / f"{first:08d}{suffix}")
                for k in range(first + 1, min(first + LINKS, count)):
                    os.link(folder / f"{first:08d}{suffix}", folder / f"{k:08d}{suffix}")
            advance(min(LINKS, count - first))
    (root / "classes.yaml").write_text("names: [road, sky]\n")


def run(place: Path) -> dict[str, float]:
    """Seconds of a fresh process: as it says, and in all."""
    command = [sys.executable, "-m", "benchmarks.many_samples", "--start", str(place / "data")]
    environment = {**os.environ, "ECENET_CACHE": str(place / "cache")}
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - begin
    return {**json.loads(done.stdout.splitlines()[-1]), "whole process": seconds}


def start(root: Path) -> dict[str, float]:
    """Seconds until the items are there, and from then until the first batch is."""
    from src.config import DataConfig
    from src.data import create_train_batches, load_items

    data = DataConfig(dataset="folder", root=str(root), crop_size=SIZE)
    begin = time.perf_counter()
    items = load_items(data, data.train_split)
    listed = time.perf_counter()
    batches = create_train_batches(
        data, max_classes=2, seed=0, rank=0, world_size=1, batch_size=BATCH, first_sample=0, num_samples=100 * BATCH,
        items=items,
    )  # fmt: skip
    next(iter(batches))
    return {"items": listed - begin, "first batch": time.perf_counter() - listed}


if __name__ == "__main__":
    cli.run(main)
