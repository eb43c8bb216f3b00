"""Constants of window attention: which tokens share a window, which slot each takes, and what is added to their scores.

Letters: H x W map, N = H W tokens of the map, w window side, n = w w tokens of a window, G windows of the map.
"""

from typing import NamedTuple

import numpy as np
from mindspore import Tensor

OTHER_REGION = -100.0  # added to the similarity of two tokens that only the shift brought into one window


def ceil_divide(number: int, divisor: int) -> int:
    """number / divisor, rounded up."""
    return -(-number // divisor)


def relative_position_index(window: int) -> np.ndarray:
    """Row of the bias table for every pair of tokens of a window: (n, n) int32, values in [0, (2 w - 1)^2)."""
    y, x = np.divmod(np.arange(window * window), window)
    dy = y[:, None] - y[None, :] + window - 1
    dx = x[:, None] - x[None, :] + window - 1
    return (dy * (2 * window - 1) + dx).astype(np.int32)


def split_windows(plane: np.ndarray, window: int) -> np.ndarray:
    """Values of a plane (H, W), whose sides are multiples of w, window by window: (G, n)."""
    cells = plane.reshape(plane.shape[0] // window, window, -1, window)
    return cells.transpose(0, 2, 1, 3).reshape(-1, window * window)


def shift_mask(grid: tuple[int, int], window: int, shift: int) -> np.ndarray:
    """Bias between slots of each window of the rolled map: (G, 1, n, n) float32, OTHER_REGION between two regions.

    Each side of the padded map has three regions: all windows but the last, and the two parts of the last one, of which
    the second came around from the far edge. Padding belongs to the region it lies in.
    """
    rows, columns = (
        (np.arange(side) >= side - window).astype(int) + (np.arange(side) >= side - shift)
        for side in (ceil_divide(side, window) * window for side in grid)
    )
    region = split_windows(3 * rows[:, None] + columns[None, :], window)
    other = region[:, None, :, None] != region[:, None, None, :]
    return np.where(other, OTHER_REGION, 0.0).astype(np.float32)


class WindowLayout(NamedTuple):
    """Constants of the blocks of a stage that shift alike."""

    slots: np.ndarray  # (G n,) int32, token of each slot, N for padding
    tokens: np.ndarray  # (N,) int32, slot of each token
    mask: Tensor  # (G, 1, n, n), G = 1 without shift


def window_layout(grid: tuple[int, int], window: int, shift: int) -> WindowLayout:
    """Windows of a map (H, W) that is padded right and bottom to multiples of w, then rolled up and left by `shift`."""
    height, width = grid
    plane = np.full([ceil_divide(side, window) * window for side in grid], height * width, np.int32)
    plane[:height, :width] = np.arange(height * width).reshape(grid)
    slots = split_windows(np.roll(plane, (-shift, -shift), (0, 1)), window).reshape(-1)
    tokens = np.argsort(slots, kind="stable")[: height * width].astype(np.int32)
    n = window * window
    mask = shift_mask(grid, window, shift) if shift else np.zeros((1, 1, n, n), np.float32)
    return WindowLayout(slots, tokens, Tensor(mask))
