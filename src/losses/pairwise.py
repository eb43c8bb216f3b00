"""The relaxed Potts energy of a pairwise kernel (DFR spec, sections 4.2 and 11): dense over all pairs, or in a window.

    L = sum_ij w_ij (1 - sum_c P_ic P_jc) / Z,   w_ij = (g_i u_j + g_j u_i) / 2 * K_ij,   K_ii = 0
    K_ij = sum_k weight_k exp(-|z_ik - z_jk|^2 / 2 - |y_ik - y_jk|_1)

Letters: B batch, K classes, F features of a kernel, D those of which the distance is L1, h x w grid, N = h w, n
positions of a block.

The energy is quadratic in the shares P. With a constant symmetric kernel its gradient is -2 M / Z, where M_i = sum_j
w_ij P_j is known from the forward pass: so nothing of size N x N is kept for the backward pass.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.functional import check_choice, spread

NORMS = ("mass", "pixel", "sum")
SMALLEST_MASS = 1e-6


class DenseEnergy(nn.Cell):
    """Energy over all pairs of positions, one number an image.

    The kernel is made and used up block by block: of each pair of blocks once, because it is symmetric. At any time
    about 3 B (N / blocks)^2 numbers of it exist, and none of them is kept, unless `kernel_grad`.

    Args:
        weights: of the kernels.
        norm: Z is the `mass` sum w_ij, the number of valid positions (`pixel`), or 1 (`sum`).
        blocks: into how many parts the positions are cut.
        gated: whether gate and valid differ, which takes a second pass over the kernel.
        kernel_grad: differentiate for the kernels' features, too, which keeps the whole kernel for the backward pass.
    """

    def __init__(
        self, weights: tuple[float, ...], norm: str, blocks: int, *, gated: bool = True, kernel_grad: bool = False
    ) -> None:
        super().__init__()
        check_choice("norm", norm, NORMS)
        if blocks < 1:
            raise ValueError(f"blocks is {blocks}; give at least 1")
        self.weights, self.norm, self.blocks = weights, norm, blocks
        self.gated, self.kernel_grad = gated, kernel_grad
        self.exponents = ops.BatchMatMul(transpose_a=True)
        self.forward_sums = ops.BatchMatMul(transpose_b=True)
        self.backward_sums = ops.BatchMatMul()

    def check_grid(self, size: tuple[int, int]) -> None:
        """Raises ValueError for a grid (h, w) of fewer positions than blocks."""
        if self.blocks > size[0] * size[1]:
            raise ValueError(f"blocks is {self.blocks}, but the grid has {size[0] * size[1]} positions; give fewer")

    def construct(self, shares, features, gate, valid, others=()):
        """(B,) float32. shares (B, K, h, w); features: z, a map (B, F_k, h, w) for each kernel; gate, valid: g and u,
        both (B, 1, h, w); others: y, a map (B, D, h, w) for each kernel, or nothing."""
        b, k, h, w = shares.shape
        shares, gate, valid = shares.reshape(b, k, h * w), gate.reshape(b, 1, h * w), valid.reshape(b, 1, h * w)
        factors = ()
        for i in range(len(features)):
            each = features[i] if self.kernel_grad else ops.stop_gradient(features[i])
            pair = gram_factors(each.reshape(b, -1, h * w))
            if len(others) > 0:
                other = others[i] if self.kernel_grad else ops.stop_gradient(others[i])
                pair = (*pair, other.reshape(b, -1, h * w).transpose(0, 2, 1))
            factors += (pair,)
        fixed = shares if self.kernel_grad else ops.stop_gradient(shares)
        values = ops.concat((fixed, ops.ones_like(valid)), 1)  # the row of ones gives the mass
        wide = values.shape
        sums = self.messages(factors, values * spread(valid, wide)) * spread(gate, wide)
        if self.gated:
            other = self.messages(factors, values * spread(gate, wide)) * spread(valid, wide)
            sums = 0.5 * (sums + other)
        sums = sums if self.kernel_grad else ops.stop_gradient(sums)
        mass = sums[:, k:].sum((1, 2))
        agreement = (sums[:, :k] * shares).sum((1, 2))
        surrogate = mass - 2.0 * agreement + ops.stop_gradient(agreement)  # the value of mass - agreement
        energy = mass - agreement if self.kernel_grad else surrogate
        return energy / divisor(self.norm, mass, valid)

    def messages(self, factors, values):
        """sum_j K_ij values_j: of each kernel two factors (B, F + 2, N) of the exponents and perhaps y (B, N, D),
        values (B, C, N) -> (B, C, N)."""
        count = values.shape[2]
        cuts = block_cuts(count, self.blocks)
        parts = ()
        done = values
        for p in range(self.blocks):
            own, later = ops.zeros_like(values[:, :, cuts[p] : cuts[p + 1]]), ()
            for q in range(p, self.blocks):
                # One block after the other: all at once they would be as large as the whole kernel.
                kernel = self.kernel(factors, cuts[p], cuts[p + 1], cuts[q], cuts[q + 1], done)
                done = self.forward_sums(values[:, :, cuts[q] : cuts[q + 1]], kernel)
                own = own + done
                if q > p:
                    done = self.backward_sums(values[:, :, cuts[p] : cuts[p + 1]], kernel)
                    later += (done,)
            parts += ((own, later),)
        sums = ()
        for p in range(self.blocks):
            total = parts[p][0]
            for q in range(p):
                total = total + parts[q][1][p - q - 1]
            sums += (total,)
        return ops.concat(sums, 2) if self.blocks > 1 else sums[0]

    def kernel(self, factors, top, bottom, left, right, after):
        """K (B, n, n') of two blocks, with a diagonal of 0; made after the tensor `after`."""
        total = 0.0
        for i in range(len(factors)):
            row = factors[i][0] if self.kernel_grad else ops.depend(factors[i][0], after)
            # Round-off of the products may go above 0, where like cells lie far from the mean.
            exponent = ops.minimum(self.exponents(row[:, :, top:bottom], factors[i][1][:, :, left:right]), 0.0)
            if len(factors[i]) > 2:
                other = factors[i][2] if self.kernel_grad else ops.depend(factors[i][2], after)
                exponent = exponent - ops.cdist(other[:, top:bottom], other[:, left:right], 1.0)
            total = total + self.weights[i] * ops.exp(exponent)
        if top == left:
            total = total * spread(off_diagonal(bottom - top), total.shape)
        return total


class WindowEnergy(nn.Cell):
    """Energy over the pairs whose offset lies in a window: as DenseEnergy, which it equals for a window of the grid.

    Args:
        weights, norm, kernel_grad: see `DenseEnergy`.
        radius: of the square window.
        dilations: the window's steps; a pair that lies in several windows counts once.
    """

    def __init__(
        self, weights: tuple[float, ...], norm: str, radius: int, dilations: tuple[int, ...], *,
        kernel_grad: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        check_choice("norm", norm, NORMS)
        if radius < 1 or not dilations or min(dilations) < 1:
            raise ValueError(f"radius is {radius}, dilations {tuple(dilations)}; give at least 1 for each")
        self.weights, self.norm, self.kernel_grad = weights, norm, kernel_grad
        self.offsets = window_offsets(radius, dilations)

    def check_grid(self, size: tuple[int, int]) -> None:
        """Raises ValueError for a grid (h, w) in which no two positions are as far apart as any offset."""
        if not any(dy < size[0] and abs(dx) < size[1] for dy, dx in self.offsets):
            raise ValueError(
                f"no offset of the window (radius, dilations) fits into a grid of {size[0]} x {size[1]} cells; give "
                "smaller dilations"
            )

    def construct(self, shares, features, gate, valid, others=()):
        """(B,) float32; arguments as those of DenseEnergy."""
        h, w = shares.shape[2], shares.shape[3]
        mass, energy = 0.0, 0.0
        for dy, dx in self.offsets:
            if dy < h and -w < dx < w:
                weight = 0.0
                for i in range(len(features)):
                    first, second = shifted(features[i], dy, dx)
                    distance = 0.5 * ops.square(first - second).sum(1, keepdims=True)
                    if len(others) > 0:
                        first, second = shifted(others[i], dy, dx)
                        distance = distance + ops.abs(first - second).sum(1, keepdims=True)
                    weight = weight + self.weights[i] * ops.exp(-distance)
                weight = weight if self.kernel_grad else ops.stop_gradient(weight)
                gates, sources = shifted(gate, dy, dx), shifted(valid, dy, dx)
                weight = weight * (gates[0] * sources[1] + gates[1] * sources[0])  # half of it, and of both directions
                ours, theirs = shifted(shares, dy, dx)
                mass = mass + weight.sum((1, 2, 3))
                energy = energy + (weight * (1.0 - (ours * theirs).sum(1, keepdims=True))).sum((1, 2, 3))
        return energy / divisor(self.norm, mass, valid.reshape(valid.shape[0], 1, h * w))


def window_offsets(radius: int, dilations: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(dy, dx) of half of the window without its centre: dy > 0, or dy = 0 and dx > 0."""
    steps = range(-radius, radius + 1)
    every = {(dy * d, dx * d) for d in dilations for dy in steps for dx in steps}
    return tuple(sorted(offset for offset in every if offset > (0, 0)))


def shifted(x, dy, dx):
    """The two ends of all pairs (dy, dx) apart, of maps (B, C, h, w): both (B, C, h - dy, w - |dx|)."""
    h, w = x.shape[2], x.shape[3]
    if dx >= 0:
        return x[:, :, : h - dy, : w - dx], x[:, :, dy:, dx:]
    return x[:, :, : h - dy, -dx:], x[:, :, dy:, : w + dx]


def divisor(norm, mass, valid):
    """Z (B,) of a norm, a constant for the gradient: mass (B,), valid (B, 1, N)."""
    if norm == "mass":
        return ops.stop_gradient(ops.maximum(mass, SMALLEST_MASS))
    if norm == "pixel":
        return ops.maximum(valid.sum((1, 2)), 1.0)
    return ops.ones_like(mass)


def gram_factors(z):
    """Two (B, F + 2, N) of z (B, F, N), so that their products over F + 2 are -|z_i - z_j|^2 / 2.

    z is centred first: the products' round-off, about 1e-7 |z|^2, is then smallest.
    """
    mean = z.mean(2, keep_dims=True)
    z = z - spread(mean, z.shape)
    half = -0.5 * ops.square(z).sum(1, keepdims=True)
    ones = ops.ones_like(half)
    return ops.concat((z, half, ones), 1), ops.concat((z, ones, half), 1)


@ms.ops.constexpr
def block_cuts(count: int, blocks: int) -> tuple[int, ...]:
    """Where the blocks of `count` positions begin, and the end; no more blocks than positions (`check_grid`)."""
    return tuple(i * count // blocks for i in range(blocks + 1))


@ms.ops.constexpr
def off_diagonal(n: int) -> Tensor:
    """(1, n, n) float32: 0 on the diagonal, else 1."""
    return Tensor((1.0 - np.eye(n))[None].astype(np.float32))
