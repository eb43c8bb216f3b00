"""AlignSeg decode head (AlignSeg spec, sections 1 to 4).

Z. Huang et al., "AlignSeg: Feature-Aligned Segmentation Networks", TPAMI 44(1), 2022.

Letters: B batch, K classes, S levels, finest first, E decoder width, C_s and H_s x W_s channels and grid of level s.
"""

import math
from collections.abc import Mapping

import numpy as np
from mindspore import nn

from src.functional import check_choice
from src.models.heads.alignseg_parts import (
    AlignedContext,
    AlignedSum,
    GlobalContext,
    PixelClassifier,
    Refinement,
)
from src.models.heads.sampler import Sampler

CONTEXTS = ("aligncm", "pool3_noalign", "gap")


class AlignSegHead(nn.Cell):
    """Adds coarser maps to the finest, one after the other, each sum of maps that offsets have moved onto each other.

    The release has four levels at strides 4 to 32. Here it may be any number: all of them and the context of the
    coarsest are added on the finest grid, and the auxiliary classifier sits on the sum before the coarsest (the third
    of four).

    Args:
        in_channels, grids: C_s and (H_s, W_s) of the levels, finest first.
        num_classes, channels: K, E (256 released), a multiple of 4.
        act_slope: of the activations for negative numbers; 0 is ReLU.
        align_up, align_acc: move the coarser and the accumulated map of every sum, see `AlignedSum`.
        context: `aligncm` (released), `pool3_noalign` (the same, pooled context resized instead of sampled), `gap`
            (mean of the coarsest map).
        pool_size: side of the pooled context of the first two (None: 3, released).
        sampler, sampler_padding, sampler_align_corners: see `Sampler`.
        auxiliary: build the auxiliary classifier, which only the loss reads: it runs in training alone.
        norm: see `create_norm`.
        dropout: rate of whole channels before each classifier.
    """

    align_corners = True  # how logits are resized: the first and last pixel of a row lie on those of the image

    def __init__(
        self, in_channels: tuple[int, ...], grids: tuple[tuple[int, int], ...], num_classes: int, *,
        channels: int = 256, act_slope: float = 0.01, align_up: bool = True, align_acc: bool = True,
        context: str = "aligncm", pool_size: int | None = None, sampler: str = "standard",
        sampler_padding: str = "zeros", sampler_align_corners: bool = True, auxiliary: bool = True,
        norm: str = "sync_batch", dropout: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        check_choice("context", context, CONTEXTS)
        if context == "gap" and pool_size is not None:
            raise ValueError(f"pool_size is {pool_size}, but context 'gap' pools the whole map; leave pool_size out")
        pool_size = 3 if pool_size is None else pool_size
        check_sizes(channels, pool_size, act_slope)
        self.levels, self.channels, self.num_classes = len(in_channels), channels, num_classes
        self.grids, self.has_auxiliary = tuple(map(tuple, grids)), auxiliary
        self.outputs = ("logits", "auxiliary") if auxiliary else ("logits",)
        self.weight_facts = {"sampler": sampler}
        self.noise_rates = np.full(channels * len(self.outputs), dropout, np.float32)
        sample = Sampler(sampler, sampler_padding, sampler_align_corners)
        style = {"norm": norm, "slope": act_slope}
        if context == "gap":
            self.context = GlobalContext(in_channels[-1], channels, **style)
        else:
            aligned = context == "aligncm"
            self.context = AlignedContext(in_channels[-1], channels, pool_size, aligned, sample, **style)
        self.laterals = nn.CellList([Refinement(c, channels, **style) for c in (*in_channels, channels)])
        self.sums = nn.CellList([AlignedSum(channels, align_up, align_acc, sample, **style) for _ in in_channels])
        self.smooths = nn.CellList([Refinement(channels, channels, **style) for _ in in_channels])
        self.main = PixelClassifier(channels, num_classes, **style)
        if auxiliary:
            self.auxiliary = PixelClassifier(channels, num_classes, **style)

    def construct(self, features, noise=None):
        """S maps (B, C_s, H_s, W_s), noise (B, E), (B, 2E) with auxiliary, or None -> dict of

        logits and, with auxiliary and in training, auxiliary, both (B, K, H_1, W_1).
        """
        acc = self.laterals[0](features[0])
        early = acc
        for s in range(1, self.levels):
            early = acc
            acc = self.add(s - 1, acc, self.laterals[s](features[s]))
        last = self.add(self.levels - 1, acc, self.laterals[self.levels](self.context(features[-1])))
        if not (self.has_auxiliary and self.training):
            return {"logits": self.main(last, None if noise is None else noise[:, : self.channels])}
        if noise is None:
            return {"logits": self.main(last, None), "auxiliary": self.auxiliary(early, None)}
        main, auxiliary = noise[:, : self.channels], noise[:, self.channels :]
        return {"logits": self.main(last, main), "auxiliary": self.auxiliary(early, auxiliary)}

    def add(self, i, acc, deep):
        """Accumulated map (B, E, H_1, W_1) with the i-th coarser map (B, E, h, w) added and refined."""
        return self.smooths[i](self.sums[i](acc, deep))

    def class_parameters(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        """Names of the parameters to start afresh where weights of `shapes`, by name, are of other classes."""
        layers = ("main.classifier.", "auxiliary.classifier.")
        return tuple(name for name, _ in self.parameters_and_names() if name.startswith(layers))

    def count_macs(self) -> int:
        """Multiply-accumulates of the convolutions for one image, auxiliary classifier included (spec section 9.3)."""
        positions = [math.prod(grid) for grid in self.grids]
        finest = positions[0]
        total = self.context.count_macs(positions[-1])
        total += sum(cell.count_macs(n) for cell, n in zip(self.laterals, [*positions, positions[-1]], strict=True))
        total += sum(cell.count_macs(finest) for cell in (*self.sums, *self.smooths, self.main))
        return total + (self.auxiliary.count_macs(finest) if self.has_auxiliary else 0)


def check_sizes(channels: int, pool_size: int, act_slope: float) -> None:
    """Raises ValueError for sizes that no head has."""
    if channels < 4 or channels % 4:
        raise ValueError(f"channels is {channels}; give a multiple of 4, at least 4 (released: 256)")
    if pool_size < 1:
        raise ValueError(f"pool_size is {pool_size}; give at least 1 (released: 3)")
    if not 0.0 <= act_slope < 1.0:
        raise ValueError(f"act_slope is {act_slope}; give a number from 0 to below 1 (released: 0.01)")
