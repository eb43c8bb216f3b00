"""Draws the eigenvectors and eigensegments of images: a row of maps and a row of masks over the image, for each.

python tools/inspect_spectrum.py --input IMAGE... --output FOLDER [--features color] [--config FILE]
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files are drawn, no window opened

import numpy as np  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from any folder

from src import cli  # noqa: E402
from src.config import load_config  # noqa: E402
from src.data.reading import read_image  # noqa: E402
from src.log import progress  # noqa: E402
from src.spectral.arguments import add_options, options_of  # noqa: E402
from src.spectral.segments import Segments, decompose, segment_masks, upsample  # noqa: E402
from tools.compute_segments import feature_maker  # noqa: E402

SHADE = 0.25  # brightness of the image outside a segment
LOWEST, HIGHEST = 2.8, 20.0  # inches of both rows: room for the facts, and no tower for a narrow image


def main() -> None:
    """Reads the command line, decomposes and draws."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Above each map its eigenvalue; red is positive. Below, the segment where it is positive.",
    )
    parser.add_argument("--input", required=True, nargs="+", type=Path, metavar="IMAGE", help="images to decompose")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="for <image>_spectrum.png")
    parser.add_argument("--config", metavar="FILE", help="the network, for other features than color")
    add_options(parser)
    args = parser.parse_args()
    options, features, network = options_of(args), None, {}
    if options.features != "color":
        if not args.config:
            parser.error(f"--features {options.features} needs --config, which names the network")
        features, network = feature_maker(load_config(args.config, []), args.weights, options, args.allow_finetuned)
    files = [cli.writable(str(args.output / f"{path.stem}_spectrum.png")) for path in args.input]
    if len(set(files)) < len(files):
        parser.error("two images have one name; draw them into different folders")
    with progress(len(files), "spectrum") as advance:
        for path, file in zip(args.input, files, strict=True):
            image = read_image(path)
            made = None if features is None else features(image)
            segments = decompose(image, made, options, network.get("weights_sha256", ""))
            draw(image, segments, file)
            advance(1, path.name)
    for file in files:
        print(file)


def draw(image: np.ndarray, segments: Segments, file: Path) -> None:
    """Writes the picture: the image and facts on the left, then a column for each eigenvector."""
    height, width = image.shape[:2]
    count = len(segments.values)
    tall = min(max(6.8 * height / width, LOWEST), HIGHEST) + 0.6
    figure = Figure(figsize=(3.2 * (count + 1), tall), layout="constrained")
    panels = figure.subplots(2, count + 1, squeeze=False)
    maps = upsample(segments.vectors, (height, width), segments.meta["patch"])
    masks = segment_masks(segments)
    for k in range(count):
        limit = float(np.abs(maps[k]).max())
        panels[0, k + 1].imshow(maps[k], cmap="RdBu_r", vmin=-limit, vmax=limit)
        panels[0, k + 1].set_title(f"$\\lambda$ = {segments.values[k]:.4f}", fontsize=10)
        panels[1, k + 1].imshow(np.where(masks[k][..., None], image, (SHADE * image).astype(np.uint8)))
        if masks[k].any() and not masks[k].all():
            panels[1, k + 1].contour(masks[k], [0.5], colors="#e69f00", linewidths=1)
        panels[1, k + 1].set_title(f"{100 * masks[k].mean():.0f} % of the image", fontsize=10)
    panels[0, 0].imshow(image)
    keys = ("features", "patch", "color_weight", "solver", "max_residual", "components")
    facts = "\n".join(f"{key}: {segments.meta[key]}" for key in keys)
    panels[1, 0].text(0.02, 0.98, facts, va="top", fontsize=9, transform=panels[1, 0].transAxes)
    for panel in panels.flat:
        panel.set_axis_off()
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    cli.run(main)
