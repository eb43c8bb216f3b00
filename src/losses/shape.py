"""The shape term: moments of predicted and true boundaries, tile by tile (SAZS spec, section 9.4, `moments`; ours).

It stands in for InverseForm's regressor (Borse et al., CVPR 2021), which SAZS's release runs on a map that is 0
everywhere, so that it has no gradient there.

Letters: B batch, h x w grid of the boundaries, T tiles, R x C of them an image.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from src.functional import bilinear_matrix

TILES, SIDE = (3, 6), 224  # of an image, down and across, and pixels along one: InverseForm's
LEAST_MASS = 1e-3  # of a tile
SMALL, TINY = 1e-6, 1e-12


def moment_matrix(source: int, tiles: int, side: int) -> np.ndarray:
    """Weights (3 tiles, source): mean of x^a, a = 0, 1, 2, over each tile of a line resized to tiles * side pixels.

    x runs from -1 to 1 over a tile, in halves of its side from its centre. Bilinear, half-pixel centres.
    """
    resize = bilinear_matrix(source, tiles * side).astype(np.float64).reshape(tiles, side, source)
    x = (np.arange(side) + 0.5) / (side / 2) - 1.0
    powers = np.stack([x**a for a in range(3)]) / side
    return np.concatenate(np.einsum("as,tsn->atn", powers, resize)).astype(np.float32)  # by power, then tile


@ms.ops.constexpr
def _moment_constant(source: int, tiles: int, side: int, transposed: bool) -> Tensor:
    matrix = moment_matrix(source, tiles, side)
    return Tensor(np.ascontiguousarray(matrix.T) if transposed else matrix)


def shape_difference(share, target, tiles=TILES, side=SIDE):
    """Mean over the tiles of the length of theta = (dx, dy, s - 1, a phi) between boundaries and their targets.

    dx, dy: difference of the centroids in halves of a tile's side; s: root of the ratio of the traces of the
    covariances; phi: angle between their main axes, within +-pi / 2, times a, how elongated both are (no gradient).
    Only tiles count in which both have more than a thousandth of the area.

    share, target (B, h, w) float32 from 0 to 1, resized bilinearly to tiles x side pixels -> a scalar, 0 where no tile
    counts.
    """
    mass, x, y, xx, yy, xy = tile_shapes(share, tiles, side)
    true_mass, true_x, true_y, true_xx, true_yy, true_xy = tile_shapes(target, tiles, side)
    counts = (mass > LEAST_MASS).astype(ms.float32) * (true_mass > LEAST_MASS).astype(ms.float32)
    counts = ops.stop_gradient(counts)
    trace, true_trace = xx + yy + SMALL, true_xx + true_yy + SMALL
    # Double angles: phi is half the angle between these vectors, and so within +-pi / 2 by itself.
    along, across, true_along, true_across = xx - yy, 2.0 * xy, true_xx - true_yy, 2.0 * true_xy
    dot = along * true_along + across * true_across
    angle = 0.5 * ops.atan2(across * true_along - along * true_across, dot + TINY)
    lengths = (along * along + across * across) * (true_along * true_along + true_across * true_across)
    angle = angle * ops.stop_gradient(ops.sqrt(lengths) / (trace * true_trace))
    scale = ops.sqrt(trace / true_trace)
    squares = ops.square(x - true_x) + ops.square(y - true_y) + ops.square(scale - 1.0) + ops.square(angle)
    distance = ops.sqrt(ops.maximum(squares, TINY))  # no slope where both agree
    return (distance * counts).sum() / ops.maximum(counts.sum(), 1.0)


def tile_shapes(q, tiles, side):
    """Mass, centroid (x, y) and covariances (xx, yy, xy) of q (B, h, w) in every tile, each (B, R, C)."""
    b, h, w = q.shape
    r, c = tiles
    columns, rows = _moment_constant(w, c, side, True), _moment_constant(h, r, side, False)
    moments = ops.matmul(q.reshape(b * h, w), columns).reshape(b, h, 3 * c)
    moments = ops.BatchMatMul()(ops.tile(rows.expand_dims(0), (b, 1, 1)), moments).reshape(b, 3, r, 3, c)
    mass = moments[:, 0, :, 0]
    safe = ops.maximum(mass, LEAST_MASS)
    x, y = moments[:, 0, :, 1] / safe, moments[:, 1, :, 0] / safe
    xx, yy = moments[:, 0, :, 2] / safe - x * x, moments[:, 2, :, 0] / safe - y * y
    return mass, x, y, ops.relu(xx), ops.relu(yy), moments[:, 1, :, 1] / safe - x * y
