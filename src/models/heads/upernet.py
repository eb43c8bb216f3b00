"""UperNet decode head: pyramid pooling on the coarsest level, then a feature pyramid (DFR spec, section 2.2).

T. Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018; layers as commonly used with Swin.

Letters: B batch, K classes, S levels, finest first, E decoder width, A width of the auxiliary head, C_s and H_s x W_s
channels and grid of level s.
"""

import math
from collections.abc import Mapping

import numpy as np
from mindspore import nn, ops

from src.functional import average_pool, resize_bilinear, spread
from src.models.layers import conv2d, create_norm


class UperNetHead(nn.Cell):
    """Pools the coarsest map, adds coarser maps to finer ones, and classifies all of them on the finest grid.

    Args:
        in_channels, grids: C_s and (H_s, W_s) of the levels, finest first.
        num_classes, channels: K, E (512 with the published Swin networks).
        bins: sides of the pooled maps.
        auxiliary: width A of the auxiliary head, a 3x3 convolution and a classifier on the second coarsest level, which
            only the loss reads: it runs in training alone. 0 builds none.
        norm: see `create_norm`.
        dropout: rate of whole channels before each classifier.
    """

    def __init__(
        self, in_channels: tuple[int, ...], grids: tuple[tuple[int, int], ...], num_classes: int, *,
        channels: int = 512, bins: tuple[int, ...] = (1, 2, 3, 6), auxiliary: int = 256, norm: str = "sync_batch",
        dropout: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        if channels < 1 or auxiliary < 0 or not bins or min(bins) < 1:
            raise ValueError(
                f"channels is {channels}, auxiliary {auxiliary}, bins {tuple(bins)}; give at least 1, 0 and 1"
            )
        self.channels, self.num_classes, self.bins = channels, num_classes, tuple(bins)
        self.in_channels, self.grids, self.levels = tuple(in_channels), tuple(map(tuple, grids)), len(in_channels)
        self.output_grid, self.auxiliary_width = self.grids[0], auxiliary
        self.pooled = nn.CellList([ConvNorm(in_channels[-1], channels, 1, norm) for _ in bins])
        self.context = ConvNorm(in_channels[-1] + len(bins) * channels, channels, 3, norm)
        self.laterals = nn.CellList([ConvNorm(width, channels, 1, norm) for width in in_channels[:-1]])
        self.smooths = nn.CellList([ConvNorm(channels, channels, 3, norm) for _ in in_channels[:-1]])
        self.fusion = ConvNorm(self.levels * channels, channels, 3, norm)
        self.classifier = conv2d(channels, num_classes, 1)
        self.outputs = ("logits",)
        if auxiliary:
            self.outputs = ("logits", "auxiliary")
            self.source = max(self.levels - 2, 0)
            self.auxiliary_conv = ConvNorm(in_channels[self.source], auxiliary, 3, norm)
            self.auxiliary_classifier = conv2d(auxiliary, num_classes, 1)
        self.noise_rates = np.full(channels + auxiliary, dropout, np.float32)

    def construct(self, features, noise=None):
        """S maps (B, C_s, H_s, W_s), noise (B, E + A) or None -> dict of logits (B, K, H_1, W_1) and, in training,
        auxiliary (B, K, H_s, W_s)."""
        fused = self.fuse(features)
        if self.auxiliary_width == 0 or not self.training:
            return {"logits": self.classifier(drop(fused, noise, 0))}
        early = self.auxiliary_conv(features[self.source])
        logits = self.classifier(drop(fused, noise, 0))
        return {"logits": logits, "auxiliary": self.auxiliary_classifier(drop(early, noise, self.channels))}

    def fuse(self, features):
        """(B, E, H_1, W_1), what the classifier sees."""
        last = features[-1]
        maps = (last,)
        for i in range(len(self.bins)):
            maps += (resize_bilinear(self.pooled[i](average_pool(last, self.bins[i])), self.grids[-1]),)
        above = self.context(ops.concat(maps, 1))
        parts = (resize_bilinear(above, self.output_grid),)
        for i in range(self.levels - 1):
            s = self.levels - 2 - i
            above = self.laterals[s](features[s]) + resize_bilinear(above, self.grids[s])
            parts = (resize_bilinear(self.smooths[s](above), self.output_grid), *parts)
        return self.fusion(ops.concat(parts, 1) if len(parts) > 1 else parts[0])

    def class_parameters(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        """Names of the parameters to start afresh where weights of `shapes`, by name, are of other classes."""
        layers = ("classifier.", "auxiliary_classifier.")
        return tuple(name for name, _ in self.parameters_and_names() if name.startswith(layers))

    def count_macs(self) -> int:
        """Multiply-accumulates of the convolutions for one image, auxiliary head included."""
        sizes, e, k, a = [math.prod(grid) for grid in self.grids], self.channels, self.num_classes, self.auxiliary_width
        total = sum(side * side * self.in_channels[-1] * e for side in self.bins)
        total += sizes[-1] * 9 * e * (self.in_channels[-1] + len(self.bins) * e)
        total += sum(n * (c * e + 9 * e * e) for n, c in zip(sizes[:-1], self.in_channels[:-1], strict=True))
        total += sizes[0] * (9 * self.levels * e * e + e * k)
        return total + (sizes[self.source] * (9 * self.in_channels[self.source] * a + a * k) if a else 0)


class ConvNorm(nn.Cell):
    """Convolution without bias, norm, ReLU: (B, C, H, W) -> (B, C', H, W)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, norm: str) -> None:
        super().__init__()
        self.conv = conv2d(in_channels, out_channels, kernel, bias=False)
        self.norm = create_norm(norm, out_channels)

    def construct(self, x):
        return ops.relu(self.norm(self.conv(x)))


def drop(x, noise, first):
    """x (B, C, H, W) times its channels' keep factors, columns `first` and on of noise (B, n), where there is any."""
    if noise is None:
        return x
    return x * spread(noise[:, first : first + x.shape[1]].expand_dims(-1).expand_dims(-1), x.shape)
