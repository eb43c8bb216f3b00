"""What DFR's loss costs: its time beside the training step of Swin-T with UperNet, and its memory by number of cells.

Time: one optimiser step with partial cross entropy (main and auxiliary head), and forward and backward of that loss
alone, with each of DFR's terms and with both, for the same batch of two images of 512 x 512 pixels, by turns.
Memory: forward and backward of the regulariser alone on cells of 8 pixels, each in a process of its own: peak resident
set less what it held before the first call, so that what compiling takes is in it.

Run from the repository root: python -m benchmarks.dfr_cost
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import src  # noqa: F401  (before MindSpore, whose log level it sets)

# isort: split
import numpy as np
from mindspore import Tensor, nn, ops

from benchmarks.results_file import RESULTS, add_result, describe_run
from benchmarks.workers.mindspore_worker import create_network, create_step
from benchmarks.workers.rows import Row, describe, draw_batch
from benchmarks.workers.serving import resident_memory
from src import cli, distributed
from src.engine.benchmark import LossPass
from src.engine.timing import alternate, peak_memory
from src.engine.train_step import draw_noise
from src.log import get_console
from src.losses import batch_counts, create_loss
from src.losses.regulariser import Regulariser

ROOT = Path(__file__).resolve().parents[1]
CONFIG, CLASSES, BATCH = "config/dfr/swin_base_voc_scribble.yaml", 21, 2
PARTIAL = "loss={name: partial_cross_entropy, weights: {aux: 0.4}}"
NETWORK = ("model.backbone={name: swin_tiny, drop_path: 0.3}", "model.head={name: upernet, channels: 512}", PARTIAL)
SMALL = (
    "model.backbone={name: swin, embed_width: 8, depths: [1, 1, 1, 1], num_heads: [1, 1, 2, 2], window: 4}",
    "model.head={name: upernet, channels: 16, auxiliary: 16}", PARTIAL,
)  # fmt: skip
WIDTH = 64  # of the embedding
LABELLED = 0.03  # share of the pixels
BASE = {"name": "partial_cross_entropy", "weights": {"aux": 0.4}}
LOSSES = {
    "labelled pixels": BASE,
    "with regulariser": {"name": "dfr", "base": BASE, "weights": {"consistency": 0.0}},
    "with consistency": {"name": "dfr", "base": BASE, "weights": {"regulariser": 0.0}},
    "whole": {"name": "dfr", "base": BASE},
}
STEP = "training step"
SIDES, SMALL_SIDES = (256, 512, 768, 1024), (64, 96)
IMPLS = {"dense, 1 block": {"blocks": 1}, "dense, 8 blocks": {"blocks": 8}, "window of 5": {"impl": "window"}}
LARGEST = {"dense, 1 block": 768, "window of 5": 512}  # side beyond which it takes too much memory, or time to compile
RATE = 1e-7


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line; measures the memory of one variant, or everything that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("time", "memory"), default=("time", "memory"), metavar="PART",
                        help="time, memory (default: both)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="timed calls of each (default 3)")
    parser.add_argument("--small", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--out", default=str(RESULTS / "dfr_cost.json"), metavar="FILE", help="results, JSON")
    parser.add_argument("--only", nargs=2, metavar=("IMPL", "SIDE"), help="memory of one variant, printed as JSON")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1")
    if options.only:
        print(json.dumps(measure_memory(options.only[0], int(options.only[1]))))
        return
    file, run = cli.writable(options.out), describe_run("benchmarks.dfr_cost")
    if "time" in options.parts:
        result = summarise(measure_time(options.small, options.rounds))
        add_result(Path(file), "time", {"run": run, **result})
        for name, entry in result["calls"].items():
            get_console().print(f"{name}: {entry['median']:.3f} s, {entry['share']:.1%} of the step")
    if "memory" in options.parts:
        rows = memory_rows(SMALL_SIDES if options.small else SIDES)
        add_result(Path(file), "memory", {"run": run, "rows": rows})


def measure_time(small: bool, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round of the training step and of the loss's parts."""
    size = (128, 128) if small else (512, 512)
    row = describe(Row("DFR", CONFIG, "train", size, CLASSES, BATCH, SMALL if small else NETWORK), reference=False)
    distributed.setup("CPU", "graph")
    distributed.set_seed(row["seed"])
    network, batch = create_network(row), draw_scribbles(row)
    noise, counts = draw_noise(network.noise_rates, row["seed"], 0, BATCH)[0], batch_counts(batch)
    step = create_step(row, network, batch, noise, counts)
    grids = network.backbone.grids
    calls = {name: create_pass(batch, counts, grids, settings) for name, settings in LOSSES.items()}
    found = alternate({STEP: lambda: step(RATE), **calls}, rounds, "step and loss by turns")
    return {name: seconds.tolist() for name, seconds in found.items()}


def draw_scribbles(row: dict) -> dict[str, np.ndarray]:
    """A batch in which few pixels have a label, with what DFR reads besides."""
    batch, random = draw_batch(row), np.random.default_rng(row["seed"])
    drawn = random.random(batch["label"].shape) < LABELLED
    label = np.where(drawn, batch["label"], 255).astype(np.int32)
    return {**batch, "label": label, "image_present": batch["present"], "progress": np.ones(1, np.float32)}


def create_pass(batch: dict[str, np.ndarray], counts: np.ndarray, grids: tuple, settings: dict):
    """A call that runs forward and backward of the loss for random outputs of Swin's grids, and waits."""
    loss, random = create_loss(settings, CLASSES), np.random.default_rng(0)
    shapes = {"logits": (CLASSES, *grids[0]), "auxiliary": (CLASSES, *grids[2]), "embedding": (WIDTH, *grids[1])}
    shapes = {key: shape for key, shape in shapes.items() if key in loss.needs}
    outputs = [Tensor(random.standard_normal((BATCH, *shape), np.float32)) for shape in shapes.values()]
    columns = ("image", "label", "valid", *getattr(loss, "columns", ()))
    cell = LossPass(loss, [(key, -1) for key in shapes], (), columns)
    inputs = [Tensor(counts), *[Tensor(np.ascontiguousarray(batch[name])) for name in columns], *outputs]
    return lambda: cell(*inputs)[0].asnumpy()


def summarise(seconds: dict[str, list[float]]) -> dict:
    """Median of every call, and the median over rounds of its share of the step of the same round."""
    calls = {}
    for name, values in seconds.items():
        shares = [value / step for value, step in zip(values, seconds[STEP], strict=True)]
        calls[name] = {"median": statistics.median(values), "share": statistics.median(shares), "seconds": values}
    return {"classes": CLASSES, "batch": BATCH, "calls": calls}


def memory_rows(sides: tuple[int, ...]) -> list[dict]:
    """Bytes of every implementation and size, each by a process of its own."""
    rows = []
    for name in IMPLS:
        for side in sides:
            if side <= LARGEST.get(name, side):
                command = [sys.executable, "-m", "benchmarks.dfr_cost", "--only", name, str(side)]
                found = subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout
                rows.append({"impl": name, "side": side, **json.loads(found)})
                get_console().print(f"{name}, {rows[-1]['cells']} cells: {rows[-1]['bytes'] / 2**20:.0f} MiB")
    return rows


class RegulariserPass(nn.Cell):
    """Energies of a batch added up, with their gradient for the shares."""

    def __init__(self, regulariser: Regulariser) -> None:
        super().__init__()
        self.regulariser = regulariser
        self.value_and_grad = ops.value_and_grad(self.forward, 0, None)

    def forward(self, shares, *others):
        return self.regulariser(shares, *others).sum()

    def construct(self, shares, *others):
        return self.value_and_grad(shares, *others)


def measure_memory(name: str, side: int) -> dict[str, int]:
    """Number of cells of a square crop, and bytes that the regulariser takes."""
    distributed.setup("CPU", "graph")
    random, grid = np.random.default_rng(0), (side // 8, side // 8)
    shares = random.random((BATCH, CLASSES, *grid), np.float32)
    maps = [shares / shares.sum(1, keepdims=True), random.random((BATCH, 3, *grid), np.float32),
            random.standard_normal((BATCH, WIDTH, *grid), np.float32) / WIDTH**0.5,
            np.full((BATCH, 1, *grid), 255, np.int32), np.ones((BATCH, 1, *grid), np.float32)]  # fmt: skip
    inputs = [*map(Tensor, maps), Tensor(np.float32(1.0))]
    cell = RegulariserPass(Regulariser(CLASSES, **IMPLS[name]))
    before = resident_memory()
    cell(*inputs)[1].asnumpy()
    return {"cells": grid[0] * grid[1], "bytes": peak_memory() - before}


if __name__ == "__main__":
    cli.run(main)
