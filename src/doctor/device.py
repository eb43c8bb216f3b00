"""What the device really does: a matrix product, and a sum over all devices."""

import time

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src import distributed
from src.doctor.finding import ERROR, Finding

SIDE = 512  # of the matrices
# Largest difference from float64, relative to the largest element: float32 on CPU; accelerators may round factors to
# 10 bits (TF32, HF32).
TOLERANCE = {"CPU": 1e-5}
TOLERANCE_ELSEWHERE = 1e-2
LENGTH = 1000  # of the array that is summed over devices


class Product(nn.Cell):
    """x w for matrices."""

    def construct(self, x, w):
        return ops.matmul(x, w)


def check_product(target: str) -> tuple[list[Finding], dict]:
    """Multiplies two matrices on the device and compares with NumPy in float64; also where MindSpore says it was."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, SIDE, SIDE), np.float32)
    start = time.perf_counter()
    try:
        product = Product()(Tensor(x), Tensor(w)).asnumpy()
    except RuntimeError as error:
        text = f"a matrix product on {target} failed: {str(error).strip().splitlines()[0]}"
        return [Finding("product_failed", ERROR, text)], {}
    seconds, used = time.perf_counter() - start, ms.get_context("device_target")
    facts = {"device": used, "product_error": relative_error(product, x, w), "product_seconds": seconds}
    found = []
    limit = TOLERANCE.get(target, TOLERANCE_ELSEWHERE)
    if not facts["product_error"] <= limit:
        text = f"a matrix product on {target} is wrong by {facts['product_error']:.1e} of its largest element"
        found.append(Finding("product_wrong", ERROR, f"{text}, allowed {limit:.0e}", (), "do not train on this device"))
    if used != target:
        text = f"device.target is {target}, but MindSpore computes on {used}"
        found.append(Finding("other_device", ERROR, text, (), "do not train here before that is mended"))
    return found, facts


def relative_error(product: np.ndarray, x: np.ndarray, w: np.ndarray) -> float:
    """Largest difference from the product in float64, as a share of its largest element."""
    exact = x.astype(np.float64) @ w.astype(np.float64)
    return float(np.abs(product - exact).max() / np.abs(exact).max())


def check_all_reduce(rank: int, world_size: int) -> list[Finding]:
    """Adds up an array over all devices and compares with the sum that is known."""
    numbers = np.arange(LENGTH, dtype=np.int64)
    total = distributed.sum_counts(numbers * (rank + 1))
    if np.array_equal(total, numbers * (world_size * (world_size + 1) // 2)):
        return []
    text = f"the sum over {world_size} devices is wrong on rank {rank}"
    return [Finding("all_reduce_wrong", ERROR, text, (), "do not train on these devices together")]
