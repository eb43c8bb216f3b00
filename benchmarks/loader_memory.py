"""Memory of a process that reads training samples, every so many samples: it must stay where it is.

Tiny drawn scenes as JPEG and PNG files, so that ten thousand samples take a minute; the workers are threads of the
process, so its resident set is theirs. All of the recipe runs, decoding at reduced size too.

Run from the repository root: python -m benchmarks.loader_memory
"""

import argparse
import tempfile
from pathlib import Path

import psutil

from src import cli
from src.config import DataConfig
from src.data import create_train_stream
from src.data.loader import SampleStream, create_batches
from src.loading_speed import write_drawn
from src.log import get_console

SIZE = (64, 96)  # H, W
BATCH = 10
CLASSES = 9


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line and prints a line for every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000, metavar="N", help="default: 10,000")
    parser.add_argument("--every", type=int, default=1_000, metavar="N", help="between two figures (default: 1,000)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="default: 2")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="loader_memory_") as place:
        stream = create_stream(Path(place), options.samples)
        for number, size in enumerate(record(stream, options.workers, options.every), 1):
            get_console().print(f"{number * options.every} samples: {size / 2**20:.1f} MiB")


def create_stream(root: Path, samples: int) -> SampleStream:
    """So many samples of twenty scenes, which are written to `root`, with a recipe that uses everything."""
    keys = write_drawn(root, ".jpg", SIZE, 21)
    data = DataConfig(**keys, crop_size=(48, 64), scale_range=(0.3, 2.0), reduced_decoding=True)
    return create_train_stream(data, max_classes=CLASSES, seed=0, first_sample=0, num_samples=samples)


def record(stream: SampleStream, workers: int, every: int) -> list[int]:
    """Bytes that this process holds after `every` samples, after twice as many, and so on; multiples of BATCH."""
    process, sizes = psutil.Process(), []
    for number, _ in enumerate(create_batches(stream, BATCH, workers), 1):
        if number * BATCH % every == 0:
            sizes.append(process.memory_info().rss)
    return sizes


if __name__ == "__main__":
    cli.run(main)
