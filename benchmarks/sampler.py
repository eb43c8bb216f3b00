"""AlignSeg's sampler beside MindSpore's `ops.grid_sample`: forward, and forward with gradients of map and offsets.

Graph mode, float32, offsets of about a pixel, by turns in one process. Both give the same numbers, which is checked
first. Milliseconds of processor time, all threads together, because a busy machine stretches the others.

Run from the repository root: python -m benchmarks.sampler
"""

import argparse
import statistics
import time
from collections.abc import Callable

import src  # noqa: F401  (before MindSpore, whose log level it sets)

# isort: split
import numpy as np
from mindspore import Tensor, nn, ops

from src import cli, distributed
from src.log import get_console
from src.models.heads.sampler import Sampler

SHAPES = ((1, 256, 128, 256), (1, 64, 128, 256), (8, 64, 60, 80))  # B, C, H, W
WARM_UP = 2  # calls that compile and allocate
CLOSE = 1e-3  # of values of order 1


class GridSample(nn.Cell):
    """What `Sampler()` computes, by `ops.grid_sample`: x (B, C, H, W), offset (B, 2, H, W) in pixels."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        height, width = shape[2:]
        rows, columns = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
        self.base = Tensor(np.stack([columns, rows], -1)[None].repeat(shape[0], 0).astype(np.float32))
        unit = np.array([2 / (width - 1), 2 / (height - 1)], np.float32)
        self.unit = Tensor(np.broadcast_to(unit, self.base.shape).copy())

    def construct(self, x, offset):
        grid = self.base + offset.transpose(0, 2, 3, 1) * self.unit
        return ops.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


class Gradients(nn.Cell):
    """Gradients of map and offsets for a given gradient of the result."""

    def __init__(self, cell: nn.Cell) -> None:
        super().__init__()
        self.cell = cell
        self.differentiate = ops.GradOperation(get_all=True, sens_param=True)

    def construct(self, x, offset, sens):
        return self.differentiate(self.cell)(x, offset, sens)


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line and prints a line for every shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=cli.positive, default=7, metavar="N", help="calls of each (default 7)")
    options = parser.parse_args(arguments)
    distributed.setup("CPU", "graph")
    for shape in SHAPES:
        forward, backward = compare(shape, options.rounds)
        get_console().print(
            f"{shape}: grid_sample forward {forward[0]:.0f} ms, with gradients {backward[0]:.0f} ms; "
            f"ours {forward[1]:.0f} and {backward[1]:.0f} ms", soft_wrap=True, markup=False,
        )  # fmt: skip


def compare(shape: tuple[int, ...], rounds: int) -> tuple[list[float], list[float]]:
    """Median milliseconds of (grid_sample, ours): forward, and with gradients. ValueError where the values differ."""
    rng = np.random.default_rng(0)
    x, sens = (Tensor(rng.normal(size=shape).astype(np.float32)) for _ in range(2))
    offset = Tensor(rng.normal(size=(shape[0], 2, *shape[2:])).astype(np.float32))
    cells = (GridSample(shape), Sampler())
    theirs, ours = (cell(x, offset).asnumpy() for cell in cells)
    if np.abs(theirs - ours).max() > CLOSE:
        raise ValueError(f"{shape}: results differ by {np.abs(theirs - ours).max():.1e}, more than {CLOSE}")
    forward = time_by_turns([lambda cell=cell: cell(x, offset).asnumpy() for cell in cells], rounds)
    gradients = [Gradients(cell) for cell in cells]
    return forward, time_by_turns([lambda cell=cell: cell(x, offset, sens)[0].asnumpy() for cell in gradients], rounds)


def time_by_turns(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median milliseconds of processor time of each call."""
    taken = [[] for _ in calls]
    for _ in range(WARM_UP + rounds):
        for call, times in zip(calls, taken, strict=True):
            start = time.process_time()
            call()
            times.append(1e3 * (time.process_time() - start))
    return [statistics.median(times[WARM_UP:]) for times in taken]


if __name__ == "__main__":
    cli.run(main)
