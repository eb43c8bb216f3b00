"""Pure functions shared by networks and losses.

Letters: B batch, C channels, H x W target size, h x w source size.

Resizing and pooling are linear in the map, and separable. They are written as products with small constant matrices
built in NumPy: exact, and one formulation with its gradient on every device.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def bilinear_matrix(source: int, target: int, align_corners: bool = False) -> np.ndarray:
    """Weights (target, source) of a 1-D bilinear resize, float32; there is no anti-aliasing.

    Row i reads position (i + 0.5) * source / target - 0.5, clamped to the edge (half-pixel centres), or with
    align_corners i * (source - 1) / (target - 1), and 0 where target is 1.
    """
    if align_corners:
        position = np.arange(target) * ((source - 1) / max(target - 1, 1))
    else:
        position = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0.0)
    low = np.minimum(np.floor(position).astype(int), source - 1)
    high = np.minimum(low + 1, source - 1)
    weight = position - low
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target), low), 1.0 - weight)
    np.add.at(matrix, (np.arange(target), high), weight)
    return matrix.astype(np.float32)


def average_pool_matrix(source: int, cells: int) -> np.ndarray:
    """Weights (cells, source) of a 1-D adaptive average pool, float32.

    Cell i covers floor(i * source / cells) .. ceil((i + 1) * source / cells) - 1; cells overlap where cells does not
    divide source.
    """
    matrix = np.zeros((cells, source), np.float32)
    for i in range(cells):
        first, last = i * source // cells, -(-(i + 1) * source // cells)
        matrix[i, first:last] = 1.0 / (last - first)
    return matrix


@ms.ops.constexpr
def _bilinear_constant(source: int, target: int, align_corners: bool, transposed: bool) -> Tensor:
    matrix = bilinear_matrix(source, target, align_corners)
    return Tensor(np.ascontiguousarray(matrix.T) if transposed else matrix)


def resize_bilinear(x, size, align_corners=False):
    """Bilinear resize (B, C, h, w) -> (B, C, H, W), where size is the static (H, W); see `bilinear_matrix`."""
    b, c, h, w = x.shape
    height, width = size
    if w != width:
        columns = _bilinear_constant(w, width, align_corners, True)
        x = ops.matmul(x.reshape(b * c * h, w), columns).reshape(b, c, h, width)
    if h != height:
        rows = ops.tile(_bilinear_constant(h, height, align_corners, False).expand_dims(0), (b * c, 1, 1))
        x = ops.BatchMatMul()(rows, x.reshape(b * c, h, width)).reshape(b, c, height, width)
    return x


@ms.ops.constexpr
def _pool_matrix(source: int, cells: int, transposed: bool) -> Tensor:
    matrix = average_pool_matrix(source, cells)
    return Tensor(np.ascontiguousarray(matrix.T) if transposed else matrix)


def pool_grid(x, size):
    """Adaptive average pool (B, C, H, W) -> (B, C, h, w), size the static (h, w); see `average_pool_matrix`."""
    b, c, height, width = x.shape
    h, w = size
    if w != width:
        x = ops.matmul(x.reshape(b * c * height, width), _pool_matrix(width, w, True)).reshape(b, c, height, w)
    if h != height:
        rows = ops.tile(_pool_matrix(height, h, False).expand_dims(0), (b * c, 1, 1))
        x = ops.BatchMatMul()(rows, x.reshape(b * c, height, w)).reshape(b, c, h, w)
    return x


@ms.ops.constexpr
def _pool_constant(height: int, width: int, cells: int) -> Tensor:
    rows, columns = average_pool_matrix(height, cells), average_pool_matrix(width, cells)
    return Tensor(np.ascontiguousarray(np.kron(rows, columns).T))


def average_pool(x, cells):
    """Adaptive average pool (B, C, H, W) -> (B, C, cells, cells); see `average_pool_matrix`."""
    b, c, height, width = x.shape
    pooled = ops.matmul(x.reshape(b * c, height * width), _pool_constant(height, width, cells))
    return pooled.reshape(b, c, cells, cells)


def on_cpu() -> bool:
    """Whether formulations for CPU are chosen: the one place that decides, when a network is built and compiled."""
    return ms.get_context("device_target") == "CPU"


@ms.ops.constexpr
def _spreads() -> bool:
    return on_cpu()


def spread(x, shape):
    """x repeated along its axes of length 1 to `shape`, of equal rank, before an element-wise operator.

    On CPU an operator that broadcasts takes five times as long as one that does not, and holds two 8-byte indices for
    each of its elements as long as the graph lives. Elsewhere broadcasting is free, and x is returned as it is.
    Raises ValueError for shapes that do not broadcast, on every device alike.
    """
    for i in range(len(shape)):
        if x.shape[i] != 1 and x.shape[i] != shape[i]:
            raise ValueError(f"a tensor of shape {x.shape} does not spread to {shape}")
    if not _spreads():
        return x
    repeats = ()
    for i in range(len(shape)):
        repeats += (shape[i] // x.shape[i],)
    return ops.tile(x, repeats)


def mean_positions(x):
    """Mean of every channel over the positions, (B, C, H, W) -> (B, C), as a product: fast with its gradient."""
    b, c, height, width = x.shape
    return ops.matmul(x.reshape(b * c, height * width), ops.ones((height * width, 1), x.dtype)).reshape(b, c) / (
        height * width
    )


def one_hot(index, depth):
    """One-hot (..., depth) float32 of an integer tensor; an index outside [0, depth), such as 255, gives zeros."""
    return (index.expand_dims(-1) == ops.arange(depth)).astype(ms.float32)


def check_choice(argument: str, value: object, allowed: tuple) -> None:
    """Raises ValueError that names the argument and the allowed values unless value is one of them."""
    if value not in allowed:
        raise ValueError(f"{argument} {value!r} is not known; allowed: {', '.join(map(str, allowed))}")
