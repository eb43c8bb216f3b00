"""Fully convolutional head: the baseline to beat.

Letters: B batch, K classes, S levels, E width.
"""

from collections.abc import Mapping

import numpy as np
from mindspore import nn, ops

from src.functional import resize_bilinear, spread
from src.models.layers import conv2d, create_norm, init_pixel_classifier


class FCNHead(nn.Cell):
    """All levels resized to the finest grid and concatenated, 3x3 convolution, norm, ReLU, dropout, classifier.

    Args:
        in_channels, grids: channels and grids of the levels, finest first.
        num_classes, channels: K, E.
        norm: see `create_norm`.
        dropout: rate of whole channels before the classifier.
        init_classifier: see `init_pixel_classifier`.
    """

    outputs: tuple[str, ...] = ("logits", "decoder")

    def __init__(
        self, in_channels: tuple[int, ...], grids: tuple[tuple[int, int], ...], num_classes: int, *,
        channels: int = 256, norm: str = "sync_batch", dropout: float = 0.1, init_classifier: str = "fanin",
    ) -> None:  # fmt: skip
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels is {channels}; give at least 1")
        self.output_grid, self.num_classes, self.channels = tuple(grids[0]), num_classes, channels
        self.fusion = conv2d(sum(in_channels), channels, 3, bias=False)
        self.fusion_norm = create_norm(norm, channels)
        self.classifier = conv2d(channels, num_classes, 1)
        init_pixel_classifier(self.classifier, init_classifier)
        self.noise_rates = np.full(channels, dropout, np.float32)

    def construct(self, features, noise=None):
        """S maps (B, C_s, H_s, W_s), noise (B, E) or None -> dict of logits (B, K, H_1, W_1) and, in training, decoder
        (B, E, H_1, W_1), what is classified."""
        maps = ()
        for feature in features:
            maps += (resize_bilinear(feature, self.output_grid),)
        fused = ops.relu(self.fusion_norm(self.fusion(ops.concat(maps, 1) if len(maps) > 1 else maps[0])))
        kept = fused
        if noise is not None:
            kept = fused * spread(noise.expand_dims(-1).expand_dims(-1), fused.shape)
        if not self.training:
            return {"logits": self.classifier(kept)}
        return {"logits": self.classifier(kept), "decoder": fused}

    def class_parameters(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        """Names of the parameters to start afresh where weights of `shapes`, by name, are of other classes."""
        return tuple(name for name, _ in self.parameters_and_names() if name.startswith("classifier."))

    def count_macs(self) -> int:
        """Multiply-accumulates of one image."""
        positions = self.output_grid[0] * self.output_grid[1]
        return positions * (9 * self.fusion.in_channels * self.channels + self.channels * self.num_classes)
