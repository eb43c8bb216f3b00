"""Bilinear sampling of a map at places that a network moves (AlignSeg spec, section 4).

Not by `ops.grid_sample`: gathering rows of channels-last maps, with the gradient written out, takes about 0.6 of its
time on CPU, of operators that every device has (docs/alignseg.md).

Letters: B batch, C channels, H x W sampled map, h x w offsets and result; M = B H W rows, N = B h w places.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.functional import check_choice, spread

SAMPLERS = ("standard", "legacy")
PADDINGS = ("zeros", "border")


@ms.ops.constexpr
def _base_positions(count: int, shape: tuple[int, int], axis: int, align_corners: bool) -> Tensor:
    """(1, h w): where the places of a grid (h, w) lie without offset among `count` pixels, along an axis of the grid.

    The grid goes from -1 to 1, one place alone lies at -1; -1 and 1 are the centres of the first and last pixel, or the
    map's edges.
    """
    places = np.linspace(-1.0, 1.0, shape[axis])
    pixels = (places + 1.0) * (count - 1) / 2.0 if align_corners else ((places + 1.0) * count - 1.0) / 2.0
    pixels = np.broadcast_to(pixels[:, None] if axis == 0 else pixels[None, :], shape)
    return Tensor(pixels.reshape(1, -1).astype(np.float32))


@ms.ops.constexpr
def _first_rows(batch: int, rows: int) -> Tensor:
    """(B, 1) int32: the first of the rows of each image."""
    return Tensor((np.arange(batch) * rows).reshape(-1, 1).astype(np.int32))


class Sampler(nn.Cell):
    """Map (B, C, H, W) and offsets (B, 2, h, w), channel 0 along the width, 1 along the height -> (B, C, h, w).

    Places lie on a grid over the map from corner to corner, and offsets move them: to larger x is to the right, so that
    what is seen moves left. Computed in float32, whatever comes in: half precision near the edge is off by up to a
    tenth of a pixel. An offset that is not finite gives a result that is not.

    Args:
        mode: `standard`: offsets in pixels of the result. `legacy`: offsets as shares of half the map, divided by its
            sides, as the released code executes it; for its checkpoints alone. A network trained with one does not work
            with the other.
        padding: what lies outside of the map, `zeros` or the `border` pixels.
        align_corners: whether -1 and 1 are the centres of the corner pixels (True) or the map's edges. Standard has
            only True: offsets 0 would not return the map otherwise.
    """

    def __init__(self, mode: str = "standard", padding: str = "zeros", align_corners: bool = True) -> None:
        super().__init__()
        check_choice("sampler", mode, SAMPLERS)
        check_choice("sampler_padding", padding, PADDINGS)
        if mode == "standard" and not align_corners:
            raise ValueError("sampler_align_corners false belongs to sampler 'legacy'; 'standard' has only true")
        self.standard, self.border, self.align_corners = mode == "standard", padding == "border", align_corners
        self.weigh = WeighRows()

    def construct(self, x, offset):
        b, c, height, width = x.shape
        shape = offset.shape[2:]
        n = shape[0] * shape[1]
        offset = offset.astype(ms.float32).reshape(b, 2, n)
        rows, row_shares = self.neighbours(offset[:, 1], height, shape, 0)
        columns, column_shares = self.neighbours(offset[:, 0], width, shape, 1)
        first = spread(_first_rows(b, height * width), (b, n))
        indices, shares = (), ()
        for i in range(2):
            for j in range(2):
                indices += ((first + rows[i] * width + columns[j]).reshape(b * n, 1),)
                shares += ((row_shares[i] * column_shares[j]).reshape(b * n, 1),)
        flat = x.astype(ms.float32).transpose(0, 2, 3, 1).reshape(b * height * width, c)
        sampled = self.weigh(flat, ops.concat(indices, 1), ops.concat(shares, 1))
        return sampled.reshape(b, shape[0], shape[1], c).transpose(0, 3, 1, 2).astype(x.dtype)

    def neighbours(self, offset, count, shape, axis):
        """The two pixels on either side of each place along an axis of `count` pixels, (B, h w) int32, and their
        shares, (B, h w) float32: 0 for one outside of the map."""
        moved = offset * self.unit(count, shape[axis])
        position = moved + spread(_base_positions(count, shape, axis, self.align_corners), moved.shape)
        if self.border:
            position = ops.minimum(ops.maximum(position, 0.0), count - 1.0)
        low = ops.stop_gradient(ops.floor(position))
        pixels, shares = (), ()
        for place, share in ((low, 1.0 - (position - low)), (low + 1.0, position - low)):
            # Limited as whole numbers: what is not finite must not become an index outside of the map.
            pixel = ops.minimum(ops.maximum(place.astype(ms.int32), 0), count - 1)
            pixels += (pixel,)
            shares += (share * (pixel.astype(ms.float32) == place).astype(ms.float32),)
        return pixels, shares

    def unit(self, count: int, places: int) -> float:
        """Pixels of the map, of which an axis has `count`, that an offset of 1 moves the places of a grid by."""
        step = 2.0 / max(places - 1, 1) if self.standard else 1.0 / count  # of the grid from -1 to 1
        return step * (count - 1 if self.align_corners else count) / 2.0


class WeighRows(nn.Cell):
    """Sums of four rows each: rows (M, C), indices (N, 4) int32 and shares (N, 4) of four rows a place -> (N, C).

    The gradient of a row is the sum of the gradients of all places that it has a share in.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gather, self.add_up, self.depend = ops.Gather(), ops.UnsortedSegmentSum(), ops.Depend()
        self.mix = ops.BatchMatMul()
        self.compare, self.hand_out = ops.BatchMatMul(transpose_b=True), ops.BatchMatMul(transpose_a=True)

    def construct(self, rows, indices, shares):
        n, c = indices.shape[0], rows.shape[1]
        chosen = self.gather(rows, indices.reshape(-1), 0).reshape(n, 4, c)
        return self.mix(shares.reshape(n, 1, 4), chosen).reshape(n, c)

    def bprop(self, rows, indices, shares, out, dout):
        n, c = indices.shape[0], rows.shape[1]
        flat, gradient = self.depend(indices, dout).reshape(-1), dout.reshape(n, 1, c)
        chosen = self.gather(rows, flat, 0).reshape(n, 4, c)
        dshares = self.compare(gradient, chosen).reshape(n, 4)
        parts = self.hand_out(shares.reshape(n, 1, 4), gradient).reshape(n * 4, c)
        return self.add_up(parts, flat, rows.shape[0]), 0 * indices, dshares
