"""Writes images of the drawn street scenes as PNG files: python tools/draw_scenes.py --output DIR [--count N]

The scenes are none of those that `toy_scenes` trains on or evaluates.
"""

import argparse
import sys
from pathlib import Path

import cv2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src import cli  # noqa: E402
from src.data.toy_scenes import BASE_SIZE, draw_scene  # noqa: E402

SEED = 1  # toy_scenes has 0 unless its options say otherwise


def main() -> None:
    """Reads the command line and writes the images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for scene_000.png and so on")
    parser.add_argument("--count", type=cli.positive, default=12, metavar="N", help="number of images (default 12)")
    parser.add_argument("--size", type=int, nargs=2, default=BASE_SIZE, metavar=("H", "W"), help="pixels")
    arguments = parser.parse_args()
    for index in range(arguments.count):
        image, _ = draw_scene(SEED, index, tuple(arguments.size))
        file = cli.writable(str(Path(arguments.output) / f"scene_{index:03d}.png"))
        if not cv2.imwrite(str(file), image[..., ::-1]):
            raise PermissionError(f"cannot write {file}")
    print(f"{arguments.count} scenes in {arguments.output}")


if __name__ == "__main__":
    cli.run(main)
