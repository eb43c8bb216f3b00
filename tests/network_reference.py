"""Convolutional layers in float64 NumPy, written from their formulas.

Letters: B batch, C channels, H x W map, k kernel.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def convolve(x: np.ndarray, weight: np.ndarray, stride: int = 1, pad=None, groups: int = 1, bias=None) -> np.ndarray:
    """x (B, C, H, W), weight (C', C / groups, k, k); pad: zeros ((above, below), (left, right)), k // 2 if None."""
    kernel = weight.shape[-1]
    sides = ((kernel // 2,) * 2,) * 2 if pad is None else pad
    x = np.pad(np.asarray(x, np.float64), ((0, 0), (0, 0), *sides))
    windows = sliding_window_view(x, (kernel, kernel), (2, 3))[:, :, ::stride, ::stride]
    parts = [
        np.einsum("bchwij,ocij->bohw", part, share, optimize=True)
        for part, share in zip(np.split(windows, groups, 1), np.split(weight, groups, 0), strict=True)
    ]
    y = np.concatenate(parts, 1)
    return y if bias is None else y + bias[:, None, None]


def normalise(x: np.ndarray, p: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Batch norm by running statistics."""
    gamma, beta, mean, variance = (
        p[f"{name}.{key}"][:, None, None] for key in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def relu(x: np.ndarray, slope: float = 0.0) -> np.ndarray:
    return np.where(x > 0, x, slope * x)


def max_pool(x: np.ndarray, ceil: bool) -> np.ndarray:
    """3x3 at stride 2: window i of an axis covers 2 i - 1 .. 2 i + 1, as far as there is something."""
    height, width = (side // 2 + 1 if ceil else (side + 1) // 2 for side in x.shape[2:])
    y = np.empty((*x.shape[:2], height, width))
    for i in range(height):
        for j in range(width):
            window = x[:, :, max(2 * i - 1, 0) : 2 * i + 2, max(2 * j - 1, 0) : 2 * j + 2]
            y[:, :, i, j] = window.max((2, 3))
    return y


def resize_corners(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize whose corner pixels stay where they are: one axis after the other by np.interp."""
    for axis, target in zip((-2, -1), size, strict=True):
        source = x.shape[axis]
        places = np.linspace(0.0, source - 1.0, target)
        x = np.apply_along_axis(lambda row, at=places, n=source: np.interp(at, np.arange(n), row), axis, x)
    return x


def sample(x: np.ndarray, px: np.ndarray, py: np.ndarray) -> np.ndarray:
    """Sum over all pixels of x (B, C, H, W) times max(0, 1 - |px - n|) max(0, 1 - |py - m|): px, py (B, h, w)."""
    across = np.maximum(0.0, 1.0 - np.abs(px[..., None] - np.arange(x.shape[3])))  # (B, h, w, W)
    down = np.maximum(0.0, 1.0 - np.abs(py[..., None] - np.arange(x.shape[2])))
    return np.einsum("bcmn,bijm,bijn->bcij", np.asarray(x, np.float64), down, across, optimize=True)
