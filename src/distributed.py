"""Device and process group: the only file that asks for a rank or sets the device."""

import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.communication import get_group_size, get_rank, init

LAUNCHER_VARIABLE = "MS_ROLE"  # set by msrun for each process
PIECE_SHIFTS = np.arange(0, 64, 12, dtype=np.uint64)
PIECE_MASK = np.uint64(2**12 - 1)


def setup(target: str, mode: str) -> tuple[int, int]:
    """Sets device and execution mode, joins the process group if started by msrun; returns (rank, world_size).

    target: CPU, GPU or Ascend; mode: graph or pynative. Call it before the first operator.
    Raises ValueError for a target that this machine or this MindSpore does not have.
    """
    if target == "CPU":
        # oneDNN falls to a reference kernel for most convolutions under AVX-512, about 100 times slower.
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
    ms.set_context(mode=ms.GRAPH_MODE if mode == "graph" else ms.PYNATIVE_MODE)
    try:
        ms.set_device(target)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device.target {target} cannot be used on this machine: {reason}") from error
    if LAUNCHER_VARIABLE not in os.environ:
        return 0, 1
    init()
    return get_rank(), get_group_size()


@contextmanager
def compile_cache(folder: Path) -> Iterator[None]:
    """Within it graphs that are compiled are read from `folder` where they are, else written there."""
    ms.set_context(enable_compile_cache=True, compile_cache_path=str(folder))
    try:
        yield
    finally:
        ms.set_context(enable_compile_cache=False)


@contextmanager
def pynative() -> Iterator[None]:
    """Within it cells run operator by operator, so that hooks see what each cell gives."""
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        yield
    finally:
        ms.set_context(mode=mode)


class _Sum(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.all_reduce = ops.AllReduce()

    def construct(self, x):
        return self.all_reduce(x)


def sum_counts(counts: np.ndarray) -> np.ndarray:
    """Exact sum of an int64 array over all devices, of which there may be up to 4096.

    AllReduce on CPU knows floats only, so the numbers travel in 12-bit pieces, whose sums float32 holds exactly.
    """
    pieces = (counts.astype(np.int64).view(np.uint64)[..., None] >> PIECE_SHIFTS) & PIECE_MASK
    sums = _Sum()(Tensor(pieces.astype(np.float32))).asnumpy().astype(np.uint64)
    return (sums << PIECE_SHIFTS).sum(-1, dtype=np.uint64).view(np.int64)


def checksum(arrays: Iterable[np.ndarray]) -> int:
    """CRC-32 over the bytes of arrays, in their order."""
    total = 0
    for array in arrays:
        total = zlib.crc32(np.ascontiguousarray(array), total)
    return total


def require_agreement(facts: Mapping[str, int], rank: int, world_size: int) -> None:
    """Raises ValueError, on every rank, for integers that are not the same on all of them. All ranks must call it."""
    if world_size == 1:
        return
    table = np.zeros((len(facts), world_size), np.int64)
    table[:, rank] = list(facts.values())
    table = sum_counts(table)
    differing = [
        f"{name} is {', '.join(f'{value} on rank {other}' for other, value in enumerate(row))}"
        for name, row in zip(facts, table.tolist(), strict=True)
        if len(set(row)) > 1
    ]
    if differing:
        raise ValueError(
            "the ranks do not start alike: " + "; ".join(differing) + ". All machines must see the same output_dir (a "
            "shared file system) and start from the same files and settings"
        )


def set_seed(seed: int) -> None:
    """Seeds the draws of initial weights."""
    ms.set_seed(seed)
