"""Dilated residual network, arch D: one map at stride 8 (SAZS spec, section 2.2).

F. Yu, V. Koltun and T. Funkhouser, "Dilated Residual Networks", CVPR 2017; SAZS takes DRN-D-105.

Letters: B batch, H x W image, C channels.
"""

import math

from mindspore import nn, ops

from src.models.backbones.resnet import Block, ConvNorm
from src.models.layers import NO_NOISE

LEVELS = 8
STRIDES = (1, 1, 2, 2, 2, 1, 1, 1, 1)  # of layers 0 to 8
DILATIONS = (1, 1, 1, 1, 1, 2, 4, 2, 1)
RESIDUAL = (3, 4, 5, 6)  # layers of bottlenecks; the others are convolutions
KERNEL = 7  # of layer 0, the others take 3


class DRN(nn.Cell):
    """Convolutions and bottlenecks; after stride 8 dilation takes the place of strides. -> one map (B, C, H/8, W/8).

    Args:
        image_size: (H, W), any.
        depths: blocks or convolutions of the layers 1 to 8.
        widths: channels of the layers 0 to 8; bottlenecks give four times theirs.
        norm: see `create_norm`.
    """

    def __init__(
        self, image_size: tuple[int, int], *, depths: tuple[int, ...] = (1, 1, 3, 4, 23, 3, 1, 1),
        widths: tuple[int, ...] = (16, 16, 32, 64, 128, 256, 512, 512, 512), norm: str = "sync_batch",
    ) -> None:  # fmt: skip
        super().__init__()
        if len(depths) != LEVELS or len(widths) != LEVELS + 1 or min(*depths, *widths) < 1:
            raise ValueError(f"drn: depths {depths} and widths {widths}; give 8 and 9 numbers above 0")
        grid, channels, layers = tuple(image_size), 3, []
        self.macs = 0
        for level, (width, stride) in enumerate(zip(widths, STRIDES, strict=True)):
            cells = []
            for i in range(depths[level - 1] if level else 1):
                step, before = stride if i == 0 else 1, grid
                grid = tuple(-(-side // step) for side in grid)
                cells.append(create_cell(level, channels, width, step, norm))
                self.macs += cell_macs(cells[-1], before, grid)
                channels = width * (4 if level in RESIDUAL else 1)
            layers.append(nn.SequentialCell(cells))
        self.layers = nn.CellList(layers)
        self.channels, self.strides, self.grids = (channels,), (8,), (grid,)
        self.noise_rates = NO_NOISE
        self.fresh_prefixes = ()

    def construct(self, image, noise=None):
        """Normalised image (B, 3, H, W) float32; noise is not used -> a tuple of one map (B, C, H/8, W/8)."""
        x = image
        for level in range(LEVELS + 1):
            x = self.layers[level](x)
        return (x,)

    def count_macs(self) -> int:
        """Multiply-accumulates of the convolutions for one image."""
        return self.macs


class ConvNormRelu(ConvNorm):
    """Convolution without bias, its norm, ReLU."""

    def construct(self, x):
        return ops.relu(self.bn(self.conv(x)))


def create_cell(level: int, in_channels: int, width: int, stride: int, norm: str) -> nn.Cell:
    """One bottleneck or convolution of a layer."""
    if level in RESIDUAL:
        return Block(in_channels, width, stride, True, norm, DILATIONS[level])
    return ConvNormRelu(in_channels, width, 3 if level else KERNEL, stride, norm, DILATIONS[level])


def cell_macs(cell: nn.Cell, before: tuple[int, int], after: tuple[int, int]) -> int:
    """Multiply-accumulates: a bottleneck's first convolution works on the grid that it is given."""
    sizes = {name: math.prod(p.shape) for name, p in cell.parameters_and_names() if name.endswith("weight")}
    early = sum(size for name, size in sizes.items() if name.startswith("conv1."))
    return math.prod(before) * early + math.prod(after) * (sum(sizes.values()) - early)


def drn_d_105(image_size, **kwargs) -> DRN:
    """DRN-D-105: 54,288,304 parameters, 512 channels."""
    return DRN(image_size, **kwargs)
