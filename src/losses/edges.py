"""Boundaries of a label map, as targets of a boundary head (SAZS spec, section 9.1).

Letters: B batch, H x W label, h x w grid of the targets.
"""

import math

import mindspore as ms
from mindspore import ops

from src.constants import IGNORE
from src.functional import check_choice

SCOPES = ("all", "seen", "target")
DOWNSAMPLES = ("nearest", "max")
FAR = 1000.0  # beyond every label
SMOOTH, SLOPE = (1, 2, 1), (-1, 0, 1)  # Sobel's kernel is their product


def half_widths(radius: int) -> tuple[int, ...]:
    """Of a disc: pixels to either side that are at most `radius` away, for the rows 0, 1, ..., radius below."""
    return tuple(math.isqrt(radius * radius - y * y) for y in range(radius + 1))


def check_edges(operator: str, radius: int, scope: str, downsample: str) -> None:
    """Raises ValueError for switches that are not known."""
    check_choice("edge_operator", operator, ("distance", "sobel"))
    check_choice("edge_scope", scope, SCOPES)
    check_choice("edge_downsample", downsample, DOWNSAMPLES)
    if radius < 1:
        raise ValueError(f"edge_radius is {radius}; give at least 1 pixel (published: 2)")


def shift(x, down, right, fill):
    """x (B, H, W) at the pixel `down` below and `right` to the right; `fill` beyond the frame. By concatenation."""
    b, height, width = x.shape
    if down:
        rows = ops.full((b, abs(down), width), fill, dtype=x.dtype)
        x = ops.concat((x[:, down:], rows), 1) if down > 0 else ops.concat((rows, x[:, :down]), 1)
    if right:
        columns = ops.full((b, height, abs(right)), fill, dtype=x.dtype)
        x = ops.concat((x[:, :, right:], columns), 2) if right > 0 else ops.concat((columns, x[:, :, :right]), 2)
    return x


def disc_maximum(x, widths, fill):
    """The largest value of x (B, H, W) in a disc of `half_widths` around each pixel; `fill` beyond the frame."""
    wide, reached, result = x, 0, x
    for down in range(len(widths) - 1, -1, -1):  # from the narrow rows to the wide ones
        for right in range(reached + 1, widths[down] + 1):
            wide = ops.maximum(wide, ops.maximum(shift(x, 0, right, fill), shift(x, 0, -right, fill)))
        reached = widths[down]
        result = ops.maximum(result, shift(wide, down, 0, fill))
        if down:
            result = ops.maximum(result, shift(wide, -down, 0, fill))
    return result


def distance_edges(label, widths, frame, scope):
    """1.0 where another value lies in the disc of `widths`: label (B, H, W) int32 -> (B, H, W) float32.

    As the release: the distance is between pixel centres, and where `frame` is set, what lies beyond the image is
    another value, too. Scope `all`: ignored pixels are a value like any other; else they make no boundary.
    """
    label = label.astype(ms.float32)
    void = ops.equal(label, IGNORE).astype(ms.float32) if scope != "all" else ops.zeros_like(label)
    outside = FAR if frame else -FAR
    greatest = disc_maximum(label - 2.0 * FAR * void, widths, outside)  # what is void is never the largest
    least = disc_maximum(-label - 2.0 * FAR * void, widths, outside)
    differs = ops.maximum((greatest != label).astype(ms.float32), (least != -label).astype(ms.float32))
    return differs * (1.0 - void)


def sobel_edges(label, scope):
    """1.0 where a Sobel derivative of the label map is not 0: label (B, H, W) int32 -> (B, H, W) float32.

    The frame repeats the edge. Unless the scope is `all`: 0 where an ignored pixel is among the 3 x 3.
    """
    x = label.astype(ms.float32)
    x = ops.concat((x[:, :1], x, x[:, -1:]), 1)
    x = ops.concat((x[:, :, :1], x, x[:, :, -1:]), 2)
    _, height, width = label.shape
    across, down, known = 0.0, 0.0, 1.0
    for i in range(3):
        for j in range(3):
            part = x[:, i : i + height, j : j + width]
            across, down = across + SMOOTH[i] * SLOPE[j] * part, down + SLOPE[i] * SMOOTH[j] * part
            known = known * (part != IGNORE).astype(ms.float32)
    edge = ops.maximum((across != 0.0).astype(ms.float32), (down != 0.0).astype(ms.float32))
    return edge if scope == "all" else edge * known


def cells(x, grid):
    """(B, H, W) -> (B, h, H / h, w, W / w), the cells of a grid; ValueError where it does not divide the sides."""
    b, height, width = x.shape
    h, w = grid
    if height % h or width % w:
        raise ValueError(f"the grid {h} x {w} does not divide the label's {height} x {width} pixels; set another crop")
    return x.reshape(b, h, height // h, w, width // w)


def sample(x, grid):
    """The first pixel of every cell, rows and columns 8 i at stride 8: (B, H, W) -> (B, h, w)."""
    return cells(x, grid)[:, :, 0, :, 0]


def reduce_edges(edge, grid, downsample):
    """Boundaries (B, H, W) of 0 and 1 on a grid, (B, h, w): the first pixel of each cell, or its maximum."""
    if downsample == "nearest":
        return sample(edge, grid)
    return ops.amax(ops.amax(cells(edge, grid), 4), 2)
