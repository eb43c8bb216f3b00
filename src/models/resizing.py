"""Weights that belong to a size, resized when they are loaded, never in the graph.

As the reference implementations do it: bicubic with half-pixel centres, coefficient -0.75 and repeated edges, without
anti-aliasing (PyTorch's `interpolate(mode="bicubic", align_corners=False)`).
"""

import math

import cv2
import numpy as np

BIAS_TABLE = "relative_position_bias_table"  # how the names of tables ((2 w - 1)^2, h) of windows of side w end


def resize_cubic(grid: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    """(h, w, C) -> (h', w', C) float32."""
    grid = grid.astype(np.float32)
    # cv2 resizes a few channels at a time.
    planes = [cv2.resize(grid[..., i], target[::-1], interpolation=cv2.INTER_CUBIC) for i in range(grid.shape[-1])]
    return np.stack(planes, -1)


def resize_position_embedding(embedding: np.ndarray, source: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """Position embeddings (1, [1 +] h * w, D) from grid `source` to `target`; a class row is kept."""
    rows = embedding.shape[1] - source[0] * source[1]
    if rows not in (0, 1):
        raise ValueError(f"position embedding {embedding.shape} does not belong to a grid of {source}")
    if source == target:
        return embedding
    resized = resize_cubic(embedding[0, rows:].reshape(*source, -1), target).reshape(1, target[0] * target[1], -1)
    return np.concatenate([embedding[:, :rows], resized], 1).astype(np.float32)


def resize_bias_table(table: np.ndarray, window: int) -> np.ndarray:
    """Biases by relative position ((2 v - 1)^2, h) of windows of side v -> ((2 w - 1)^2, h), w = `window`.

    Raises ValueError where the rows are no such square.
    """
    side = math.isqrt(len(table))
    if side * side != len(table) or side % 2 == 0:
        raise ValueError(f"{BIAS_TABLE} {table.shape}: the rows are not the square of an odd number, (2 w - 1)^2")
    target = 2 * window - 1
    if side == target:
        return table
    return resize_cubic(table.reshape(side, side, -1), (target, target)).reshape(target * target, -1)
