"""The pixel encoders of SAZS, as heads whose classes are the numbers of a text vector (SAZS spec, sections 2.1, 2.2).

Liu et al., "Delving into Shape-aware Zero-shot Semantic Segmentation", CVPR 2023.

Letters: B batch, C channels, D width of the embedding, h x w grid of the coarsest level.
"""

from collections.abc import Mapping

import numpy as np
from mindspore import nn, ops

from src.functional import average_pool, resize_bilinear, spread
from src.models.layers import NO_NOISE, conv2d, create_norm

POOL_GRIDS = (1, 2, 3, 6)


class ReassembleHead(nn.Cell):
    """The coarsest level by a 1x1 convolution and a transposed one of 2x2: (B, C, h, w) -> (B, D, 2h, 2w).

    The second of DPT's reassemble steps (R. Ranftl et al., ICCV 2021): no norm, no ReLU, of either sign.

    Args:
        in_channels, grids: channels and grids of the levels, finest first.
        num_classes: D.
    """

    outputs: tuple[str, ...] = ("logits",)

    def __init__(self, in_channels: tuple[int, ...], grids: tuple[tuple[int, int], ...], num_classes: int) -> None:
        super().__init__()
        self.num_classes = self.channels = num_classes
        self.grid = tuple(grids[-1])
        self.output_grid = tuple(2 * side for side in self.grid)
        self.project = conv2d(in_channels[-1], num_classes, 1)
        self.upsample = nn.Conv2dTranspose(num_classes, num_classes, 2, 2, "valid", has_bias=True)
        self.noise_rates = NO_NOISE

    def construct(self, features, noise=None):
        """S maps (B, C_s, H_s, W_s); noise is not used -> {"logits": (B, D, 2h, 2w)}."""
        return {"logits": self.upsample(self.project(features[-1]))}

    def class_parameters(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        """Names of the parameters to start afresh where weights of `shapes`, by name, are of other classes: all."""
        return tuple(name for name, _ in self.parameters_and_names())

    def count_macs(self) -> int:
        """Multiply-accumulates of one image."""
        return self.grid[0] * self.grid[1] * self.num_classes * (self.project.in_channels + 4 * self.num_classes)


class PyramidPoolingHead(nn.Cell):
    """The coarsest level beside its means over 1, 2 x 2, 3 x 3 and 6 x 6 cells, then 3x3 convolution, norm, ReLU.

    H. Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017, as SAZS puts it behind DRN: no value is below 0.

    Args:
        in_channels, grids: channels and grids of the levels, finest first.
        num_classes: D.
        norm: see `create_norm`.
        dropout: rate of whole channels of the result; SAZS takes 0.95 on PASCAL-5i and 0.9 on COCO-20i.
    """

    outputs: tuple[str, ...] = ("logits",)

    def __init__(
        self, in_channels: tuple[int, ...], grids: tuple[tuple[int, int], ...], num_classes: int, *,
        norm: str = "sync_batch", dropout: float = 0.95,
    ) -> None:  # fmt: skip
        super().__init__()
        channels = in_channels[-1]
        self.num_classes, self.channels, self.output_grid = num_classes, channels, tuple(grids[-1])
        self.pooled = nn.CellList([conv2d(channels, channels, 1, bias=False) for _ in POOL_GRIDS])
        self.pooled_norms = nn.CellList([create_norm(norm, channels) for _ in POOL_GRIDS])
        self.fusion = conv2d(channels * (1 + len(POOL_GRIDS)), num_classes, 3, bias=False)
        self.fusion_norm = create_norm(norm, num_classes)
        self.noise_rates = np.full(num_classes, dropout, np.float32)

    def construct(self, features, noise=None):
        """S maps (B, C_s, H_s, W_s), noise (B, D) or None -> {"logits": (B, D, h, w)}."""
        x = features[-1]
        maps = (x,)
        for i in range(len(POOL_GRIDS)):
            cells = self.pooled[i](average_pool(x, POOL_GRIDS[i]))
            maps += (resize_bilinear(ops.relu(self.pooled_norms[i](cells)), self.output_grid),)
        fused = ops.relu(self.fusion_norm(self.fusion(ops.concat(maps, 1))))
        if noise is not None:
            fused = fused * spread(noise.expand_dims(-1).expand_dims(-1), fused.shape)
        return {"logits": fused}

    def class_parameters(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        """Names of the parameters to start afresh where weights of `shapes`, by name, are of other classes."""
        return tuple(name for name, _ in self.parameters_and_names() if name.startswith("fusion"))

    def count_macs(self) -> int:
        """Multiply-accumulates of one image."""
        positions = self.output_grid[0] * self.output_grid[1]
        pooled = sum(side * side for side in POOL_GRIDS) * self.channels**2
        return pooled + positions * 9 * self.fusion.in_channels * self.num_classes
