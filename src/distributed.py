"""Device and process group: the only file that asks for a rank or sets the device."""

import os

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.communication import get_group_size, get_rank, init

LAUNCHER_VARIABLE = "MS_ROLE"  # set by msrun for each process


def setup(target: str, mode: str) -> tuple[int, int]:
    """Sets device and execution mode, joins the process group if started by msrun; returns (rank, world_size).

    target: CPU, GPU or Ascend; mode: graph or pynative. Call it before the first operator.
    """
    if target == "CPU":
        # oneDNN falls to a reference kernel for most convolutions under AVX-512, about 100 times slower.
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
    ms.set_context(mode=ms.GRAPH_MODE if mode == "graph" else ms.PYNATIVE_MODE)
    ms.set_device(target)
    if LAUNCHER_VARIABLE not in os.environ:
        return 0, 1
    init()
    return get_rank(), get_group_size()


class _Sum(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.all_reduce = ops.AllReduce()

    def construct(self, x):
        return self.all_reduce(x)


def sum_counts(counts: np.ndarray) -> np.ndarray:
    """Sum of an int64 array over all devices."""
    return _Sum()(Tensor(counts)).asnumpy()
