"""How time grows with tokens, batch and classes: ViT-Ti ECENet, ours and PyTorch eager by turns.

Each point is a forward (evaluation, logits) and a training step on its own inputs, as in benchmarks.side_by_side;
beside each stands the network's operation count. benchmarks/report.py plots both, normalised to the first point.

Run from the repository root: python -m benchmarks.growth
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from benchmarks.results_file import RESULTS, add_result, describe_run
from benchmarks.workers.rows import Row, describe
from benchmarks.workers.session import OURS, measure_row
from src import cli
from src.log import get_console

CONFIG = "config/ecenet/vit_tiny_camvid.yaml"
CONTENDERS = (OURS, "eager")
SIDES = (256, 384, 512, 768, 1024)  # pixels: 256, 576, 1024, 2304, 4096 tokens
BATCHES = (1, 2, 4, 8)
CLASSES = (19, 60, 150, 171)
BASE_SIDE, BASE_CLASSES = 256, 150
SERIES = ("tokens", "batch", "classes")
MODES = ("forward", "train")


def points(small: bool) -> Iterator[tuple[str, float, Row]]:
    """(series, its value, row in mode forward) of every point; small: the first point of each series."""
    last = 1 if small else None
    for side in SIDES[:last]:
        yield "tokens", (side // 16) ** 2, Row(f"{side} pixels", CONFIG, "forward", (side, side), BASE_CLASSES)
    for batch in BATCHES[:last]:
        yield "batch", batch, Row(f"batch {batch}", CONFIG, "forward", (BASE_SIDE, BASE_SIDE), BASE_CLASSES, batch)
    for classes in CLASSES[:last]:
        yield "classes", classes, Row(f"{classes} classes", CONFIG, "forward", (BASE_SIDE, BASE_SIDE), classes)


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line, measures point after point, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(RESULTS / "growth.json"), metavar="FILE", help="results, JSON")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="timed calls of each (default 7)")
    parser.add_argument(
        "--series", nargs="+", choices=SERIES, default=SERIES, metavar="NAME",
        help=f"{', '.join(SERIES)} (default: all)",
    )  # fmt: skip
    parser.add_argument("--small", action="store_true", help="only the first point of each series, to see that it runs")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1")
    file, run = cli.writable(options.out), describe_run("benchmarks.growth")
    for series, value, row in points(options.small):
        if series not in options.series:
            continue
        for mode in MODES:
            name = f"{series}/{value}/{mode}"
            described = describe(row, reference=False) | {"mode": mode}
            result = measure_row(described, CONTENDERS, options.rounds, name)
            add_result(Path(file), name, {"run": run, "series": series, "value": value, **result})
            medians = ", ".join(f"{key} {entry['median']:.3f} s" for key, entry in result["contenders"].items())
            get_console().print(f"{name}: {medians}, {result['gmacs_per_call']:.2f} GMAC")


if __name__ == "__main__":
    cli.run(main)
