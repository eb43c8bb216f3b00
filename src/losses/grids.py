"""What the losses on coarse grids read: shares, labels and maps brought to a grid of cells (DFR spec, section 1).

Letters: B batch, K classes, H x W label, h x w grid, s stride.
"""

import mindspore as ms
from mindspore import ops

from src.constants import IGNORE
from src.functional import pool_grid, resize_bilinear, spread

SMALLEST_SCORE = 1e-6  # keeps the logarithm of a score finite


def cells_of(key: str, stride: int, size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of the cells of `stride` pixels, a setting, of crops (H, W); ValueError where they do not fill them."""
    if size[0] % stride or size[1] % stride:
        raise ValueError(
            f"data.crop_size {list(size)} is no whole number of cells of {stride} pixels ({key}): change one of them"
        )
    return size[0] // stride, size[1] // stride


def grid_of(label, stride):
    """(h, w) of the cells of `stride` pixels of a label (B, H, W), which they fill (`cells_of`)."""
    return label.shape[1] // stride, label.shape[2] // stride


def to_grid(x, size):
    """A map (B, C, H, W) on another grid (h, w): mean of its cells where they fit, else bilinear."""
    if x.shape[2] % size[0] or x.shape[3] % size[1]:
        return resize_bilinear(x, size)
    return pool_grid(x, size)


def class_logits(outputs):
    """Float32 logits (B, K, h, w) whose softmax is the share of every class.

    Heads that give `class_scores`, as SegViT does, call logits what are sums of confidence times probability: scores q,
    of which a pixel's shares are q / sum q. That is the softmax of their logarithms.
    """
    logits = outputs["logits"].astype(ms.float32)
    if "class_scores" in outputs:
        return ops.log(ops.maximum(logits, SMALLEST_SCORE))
    return logits


def grid_shares(logits, size, log_softmax):
    """Shares of the classes (B, K, h, w) from logits (B, K, H', W'): means of the cells' shares where the cells fit the
    logits' grid, else of resized logits."""
    if logits.shape[2] % size[0] or logits.shape[3] % size[1]:
        logits = resize_bilinear(logits, size)
    b, k, h, w = logits.shape
    return pool_grid(ops.exp(log_softmax(logits.reshape(b, k, h * w))).reshape(b, k, h, w), size)


def cell_labels(label, stride):
    """The one class (B, 1, h, w) int32 among a cell's labelled pixels, 255 for none or several: label (B, H, W)."""
    b, height, width = label.shape
    h, w = grid_of(label, stride)
    cells = label.astype(ms.float32).reshape(b, h, stride, w, stride)
    drawn = (label != IGNORE).astype(ms.float32).reshape(b, h, stride, w, stride)
    high = ops.amax(cells * drawn - (1.0 - drawn), (2, 4))
    low = -ops.amax(-cells * drawn - 2.0 * IGNORE * (1.0 - drawn), (2, 4))
    one = (high == low).astype(ms.float32)
    return (high * one + IGNORE * (1.0 - one)).astype(ms.int32).reshape(b, 1, h, w)


def whole_cells(valid, stride):
    """1.0 (B, 1, h, w) where all pixels of a cell are real: valid (B, H, W)."""
    pooled = pool_grid(valid.astype(ms.float32).expand_dims(1), grid_of(valid, stride))
    return (pooled >= 1.0 - 0.5 / stride**2).astype(ms.float32)


def unit(x):
    """x (B, D, h, w) with vectors of length 1 over D: x / sqrt(|x|^2 + 1e-6)."""
    length = ops.rsqrt(ops.square(x).sum(1, keepdims=True) + 1e-6)
    return x * spread(length, x.shape)
