"""How far data.reduced_decoding moves training images: mean difference in levels, the largest of all images.

CamVid's training images and drawn scenes of 2048 x 1024, each resized by the smallest ratio of a range and taken whole,
and by any ratio of the range, of which a window is taken as training crops it. No flips, no photometric distortion.

Run from the repository root: python -m benchmarks.reduced_decoding
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from src import cli
from src.config import DataConfig
from src.data import create_train_stream, load_classes, load_items
from src.loading_speed import DRAWN_SIZE, write_drawn
from src.log import get_console

RANGES = ((0.5, 0.5), (0.2501, 0.5), (0.1251, 0.25), (0.1, 0.125))  # of ratios; at 0.25 a file is read 4 times smaller
CAMVID_SIZE = (360, 480)  # H, W
DRAWN_COUNT = 32


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line and prints a line for every data set and range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=cli.positive, metavar="N", help="of each data set (default: all)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="reduced_decoding_") as place:
        drawn = write_drawn(Path(place), ".jpg", DRAWN_SIZE, min(options.images or DRAWN_COUNT, DRAWN_COUNT) + 1)
        for name, keys, size in (("CamVid", {"dataset": "camvid"}, CAMVID_SIZE), ("drawn", drawn, DRAWN_SIZE)):
            for low, high in RANGES:
                whole, window = (differences(keys, size, (low, top), options.images) for top in (low, high))
                get_console().print(
                    f"{name}, {len(whole)} images: whole at {low} mean {whole.mean():.1f} largest {whole.max():.1f}; "
                    f"windows at {low} to {high} mean {window.mean():.1f} largest {window.max():.1f}",
                    soft_wrap=True,
                )


def differences(keys: dict, size: tuple[int, int], ratios: tuple[float, float], number: int | None) -> np.ndarray:
    """Mean difference in levels of each training image (H, W); windows are as large as an image at the lowest ratio."""
    crop = tuple(round(side * ratios[0]) for side in size)
    settings = {**keys, "crop_size": crop, "scale_range": ratios, "flip": 0.0, "photometric": False}
    streams = (images(DataConfig(**settings, reduced_decoding=reduced), number) for reduced in (False, True))
    return np.array([np.abs(plain - smaller).mean() for plain, smaller in zip(*streams, strict=True)])


def images(data: DataConfig, number: int | None) -> Iterator[np.ndarray]:
    """One augmented image (3, H, W) of each training item."""
    count, classes = number or len(load_items(data, data.train_split)), len(load_classes(data))
    stream = create_train_stream(data, max_classes=classes, seed=0, first_sample=0, num_samples=count)
    return (dict(zip(stream.columns, stream[i], strict=True))["image"].astype(int) for i in range(count))


if __name__ == "__main__":
    cli.run(main)
