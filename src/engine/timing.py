"""Measuring: calls by turns, steps with the wait for their data, the machine's matrix-product peak, memory."""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from mindspore import Tensor, nn, ops

from src.log import progress

WARM_UP = 2  # calls that are not counted: compilation, first allocation
PEAK_SIDE = {"CPU": 2048}  # of the square matrices; large devices need more to be busy
PEAK_SIDE_ELSEWHERE = 8192
PEAK_PRODUCTS = 2  # in one graph, each on the result of the one before


class Products(nn.Cell):
    """First element (1, 1) of x w w ... for square matrices x, w."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def construct(self, x, w):
        for _ in range(self.count):
            x = ops.matmul(x, w)
        return ops.slice(x, (0, 0), (1, 1))


def peak_product(target: str) -> tuple[Callable[[], object], float]:
    """A call that multiplies large float32 matrices, and its number of multiply-accumulates."""
    side = PEAK_SIDE.get(target, PEAK_SIDE_ELSEWHERE)
    rng = np.random.default_rng(0)
    x, w = (Tensor(rng.standard_normal((side, side), np.float32) / np.float32(side**0.5)) for _ in range(2))
    products = Products(PEAK_PRODUCTS)
    return lambda: products(x, w).asnumpy(), float(PEAK_PRODUCTS * side**3)


def alternate(calls: Mapping[str, Callable[[], object]], rounds: int, title: str) -> dict[str, np.ndarray]:
    """Seconds of every call, (rounds,) each: one call of each a round, so that a busy machine slows all alike.

    A call must wait for its result. The first WARM_UP rounds are not counted.
    """
    seconds = {name: np.zeros(WARM_UP + rounds) for name in calls}
    with progress(WARM_UP + rounds, title) as advance:
        for i in range(WARM_UP + rounds):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                seconds[name][i] = time.perf_counter() - start
            advance()
    return {name: values[WARM_UP:] for name, values in seconds.items()}


def spread(seconds: np.ndarray) -> dict[str, float]:
    """Median, min, max and iqr (interquartile range) of times, in their unit."""
    low, median, high = np.percentile(seconds, (25, 50, 75))
    return {"median": median, "min": seconds.min(), "max": seconds.max(), "iqr": high - low}


def peak_memory() -> int:
    """Most bytes of main memory that this whole process has held so far; not those of an accelerator."""
    unit = 1 if sys.platform == "darwin" else 1024  # the unit differs by system
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def time_steps(step: Callable[[list, int], object], groups: Iterator[list], steps: int, skip: int) -> tuple[dict, list]:
    """Seconds of the `first` step, and of the timed ones the `total` and the `waiting` for data, (steps,) each.

    step: takes the micro-batches of a step and its number, and waits for the result. `skip` groups are thrown away
    after the first step: they were read while it was being compiled, and would hide how fast data is read. Then come
    WARM_UP steps that are not counted. Also returns the last group.
    """
    group = next(groups)
    start = time.perf_counter()
    step(group, 0)
    first = time.perf_counter() - start
    for _ in range(skip):
        next(groups)
    total, waiting = np.zeros((2, WARM_UP + steps))
    with progress(WARM_UP + steps, "training steps") as advance:
        for i in range(WARM_UP + steps):
            start = time.perf_counter()
            group = next(groups)
            waiting[i] = time.perf_counter() - start
            step(group, i + 1)
            total[i] = time.perf_counter() - start
            advance()
    return {"first": first, "total": total[WARM_UP:], "waiting": waiting[WARM_UP:]}, group


def with_peak(
    calls: Mapping[str, Callable[[], object]], rounds: int, target: str
) -> tuple[dict[str, np.ndarray], float]:
    """`alternate` with matrix products taking their turn; returns the calls' seconds and the peak.

    The peak is the machine's best multiply-accumulates a second: that of the fastest products.
    """
    product, macs = peak_product(target)
    seconds = alternate({**calls, "product": product}, rounds, "whole and parts by turns")
    return seconds, macs / seconds.pop("product").min()


def shares(seconds: Mapping[str, np.ndarray], whole: str, repeats: int = 1) -> dict[str, dict]:
    """Spread of every call and its share of the whole by medians; `rest` is what the parts leave, below 0 if nothing.

    repeats: how often a part runs in the whole.
    """
    reference = np.median(seconds[whole])
    result = {name: {**spread(values), "share": np.median(values) / reference} for name, values in seconds.items()}
    parts = [name for name in seconds if name != whole]
    for name in parts:
        result[name]["share"] *= repeats
    return {**result, "rest": {"share": 1.0 - sum(result[name]["share"] for name in parts)}}


def arithmetic(network: nn.Cell, forwards_per_s: float, peak: float) -> dict:
    """GMAC of one image's forward, operations a second (two a multiply-accumulate), and their share of the peak.

    peak: multiply-accumulates a second.
    """
    backbone, head = network.backbone.count_macs(), network.head.count_macs()
    achieved = (backbone + head) * forwards_per_s
    return {
        "gmacs": {"backbone": backbone / 1e9, "head": head / 1e9, "total": (backbone + head) / 1e9},
        "peak_gflops": 2.0 * peak / 1e9, "achieved_gflops": 2.0 * achieved / 1e9, "peak_share": achieved / peak,
    }  # fmt: skip
