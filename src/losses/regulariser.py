"""The dynamic feature regularised loss (DFR spec, section 4): neighbours alike in colour and features agree.

B. Zhang et al., "Dynamic Feature Regularized Loss for Weakly Supervised Semantic Segmentation", arXiv 2108.01296. The
abstracts alone were available: ingredients are the paper's, the form of the kernel and all numbers are ours.

Letters: B batch, K classes, D embedding width, h x w grid.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.constants import IGNORE
from src.functional import check_choice, spread
from src.losses.pairwise import NORMS, DenseEnergy, WindowEnergy

IMPLS = ("dense", "window")
GATES = ("valid", "rrm_soft", "unlabelled")


class Regulariser(nn.Cell):
    """Pairwise energy of the shares under a kernel of position, colour and the embedding of the same forward pass.

        K_ij = sum of weight * exp(-|p_i - p_j|^2 / 2 xy^2 - |I_i - I_j|^2 / 2 rgb^2 - beta |E_i - E_j|^2 / 2 deep^2)

    The kernel is constant for the gradient: it trains the shares alone (spec 4.3).

    Args:
        num_classes: K; not needed here.
        stride: pixels of a cell of the grid.
        kernels: (weight, xy, rgb, deep) each: xy in pixels of the crop, rgb for colours 0 to 1, deep for embeddings of
            length 1; a sigma of 0 leaves its factor out. (1, 100, 15/255, 0) is the static loss; two kernels of weight
            0.5, one without rgb, one without deep, add shallow and deep affinity instead of multiplying them.
        impl: `dense`, all pairs, or `window`.
        blocks: of the dense kernel, see `DenseEnergy`.
        radius, dilations: of the window, in cells.
        norm: see `DenseEnergy`.
        gate: pixels that are drawn to others: `valid` ones, those `unlabelled`, or `rrm_soft`, labelled ones by how
            unsure they are.
        normalise: embeddings have length 1.
        kernel_grad: let the gradient into the kernel, for ablation.
        start: share of the training steps from which the loss counts.
        beta_ramp: shares between which beta rises from 0 to 1.
    """

    def __init__(
        self, num_classes: int, *, stride: int = 8,
        kernels: tuple[tuple[float, float, float, float], ...] = ((1.0, 100.0, 15 / 255, 0.5),), impl: str = "dense",
        blocks: int = 8, radius: int = 5, dilations: tuple[int, ...] = (1,), norm: str = "mass", gate: str = "valid",
        normalise: bool = True, kernel_grad: bool = False, start: float = 0.005,
        beta_ramp: tuple[float, float] = (0.05, 0.15),
    ) -> None:  # fmt: skip
        super().__init__()
        for name, value, allowed in (("impl", impl, IMPLS), ("gate", gate, GATES), ("norm", norm, NORMS)):
            check_choice(name, value, allowed)
        check_numbers(stride, kernels, start, beta_ramp)
        self.stride, self.kernels, self.gate, self.normalise = stride, kernels, gate, normalise
        self.kernel_grad, self.start, self.beta_ramp = kernel_grad, start, beta_ramp
        self.deep = any(kernel[3] > 0.0 for kernel in kernels)
        weights = tuple(kernel[0] for kernel in kernels)
        if impl == "dense":
            self.energy = DenseEnergy(weights, norm, blocks, gated=gate != "valid", kernel_grad=kernel_grad)
        else:
            self.energy = WindowEnergy(weights, norm, radius, dilations, kernel_grad=kernel_grad)

    def construct(self, shares, colours, embedding, cells, inside, progress):
        """(B,) float32: shares (B, K, h, w), colours (B, 3, h, w) 0 to 1, embedding (B, D, h, w) or None, cells
        (B, 1, h, w) int32 labels, inside (B, 1, h, w) 1.0 where a cell is real, progress () share of the steps done."""
        low, high = self.beta_ramp
        beta = ops.minimum(ops.relu((progress - low) / max(high - low, 1e-9)), 1.0)
        features = ()
        for kernel in self.kernels:
            features += (self.features(kernel, colours, embedding, beta),)
        on = (progress >= self.start).astype(ms.float32)
        return on * self.energy(shares, features, self.gates(shares, cells, inside), inside)

    def features(self, kernel, colours, embedding, beta):
        """Map (B, F, h, w) in which half the square of a distance is the exponent of a kernel."""
        b, _, h, w = colours.shape
        parts = ()
        if kernel[1] > 0.0:
            parts += (ops.tile(places(h, w, self.stride / kernel[1]), (b, 1, 1, 1)),)
        if kernel[2] > 0.0:
            parts += (colours / kernel[2],)
        if kernel[3] > 0.0:
            factor = ops.sqrt(beta).reshape(1, 1, 1, 1) / kernel[3]
            parts += (embedding * spread(factor, embedding.shape),)
        return ops.concat(parts, 1) if len(parts) > 1 else parts[0]

    def gates(self, shares, cells, inside):
        """g (B, 1, h, w)."""
        if self.gate == "valid":
            return inside
        free = 1.0 - (cells != IGNORE).astype(ms.float32)
        if self.gate == "unlabelled":
            return inside * free
        surest = ops.stop_gradient(ops.amax(shares, 1, True))
        return inside * free + (1.0 - free) * ops.relu(inside - surest)


def check_numbers(stride: int, kernels: tuple, start: float, beta_ramp: tuple[float, float]) -> None:
    """Raises ValueError for settings without a meaning."""
    if stride < 1:
        raise ValueError(f"stride is {stride}; give at least 1")
    if not kernels or any(kernel[0] <= 0.0 or min(kernel) < 0.0 or max(kernel[1:]) == 0.0 for kernel in kernels):
        raise ValueError(f"kernels {kernels}: give (weight, xy, rgb, deep) each, a weight above 0, a sigma above 0")
    if not 0.0 <= start <= 1.0 or not 0.0 <= beta_ramp[0] <= beta_ramp[1] <= 1.0:
        raise ValueError(f"start {start} and beta_ramp {tuple(beta_ramp)} are shares of the steps, 0 to 1, ascending")


@ms.ops.constexpr
def places(h: int, w: int, step: float) -> Tensor:
    """(1, 2, h, w) float32: row and column of every cell times step."""
    return Tensor((np.indices((h, w))[None] * step).astype(np.float32))
