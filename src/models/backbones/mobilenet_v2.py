"""MobileNetV2 without norms, four maps at strides 4, 8, 16, 32: for public weights whose norms are folded into biases.

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018. Padding is TensorFlow's
`SAME`: at stride 2 an even side gets a zero behind it and none before it.

Letters: B batch, H x W image, C_s channels and H_s x W_s grid of map s.
"""

import math

from mindspore import nn, ops
from mindspore.common.initializer import HeUniform, Uniform

from src.models.layers import NO_NOISE, conv2d, depthwise3x3

STEM_WIDTH = 32
# Expansion, channels and stride of each group of blocks, and the blocks of each.
GROUPS = ((1, 16, 1), (6, 24, 2), (6, 32, 2), (6, 64, 2), (6, 96, 1), (6, 160, 2), (6, 320, 1))
REPEATS = (1, 2, 3, 4, 3, 3, 1)
MAPS = (1, 2, 4, 6)  # groups whose output is returned: the last of each stride


def halving_conv(in_channels: int, channels: int, groups: int) -> nn.Conv2d:
    """3x3 convolution of stride 2, bias, TensorFlow's padding: (B, C, H, W) -> (B, C', ceil(H / 2), ceil(W / 2))."""
    bound = 1.0 / math.sqrt(9 * in_channels // groups)
    return nn.Conv2d(
        in_channels, channels, 3, 2, "same", group=groups, has_bias=True, weight_init=HeUniform(math.sqrt(5)),
        bias_init=Uniform(bound),
    )  # fmt: skip


class InvertedResidual(nn.Cell):
    """1x1 to `expansion` C, depthwise 3x3, 1x1 to C': (B, C, H, W) -> (B, C', H / stride, W / stride), rounded up."""

    def __init__(self, in_channels: int, channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expands, self.adds, self.stride = expansion > 1, stride == 1 and in_channels == channels, stride
        if self.expands:
            self.expand = conv2d(in_channels, hidden, 1)
        self.depthwise = halving_conv(hidden, hidden, hidden) if stride == 2 else depthwise3x3(hidden)
        self.project = conv2d(hidden, channels, 1)

    def construct(self, x):
        y = ops.relu6(self.expand(x)) if self.expands else x
        y = self.project(ops.relu6(self.depthwise(y)))
        return x + y if self.adds else y


class MobileNetV2(nn.Cell):
    """MobileNetV2 1.0 up to its last block, (B, C_s, H_s, W_s) with 24, 32, 96 and 320 channels, finest first.

    There is nothing to normalise: train with a low rate, from pretrained weights. Images are RGB with mean and standard
    deviation 127.5.

    Args:
        image_size: (H, W), any.
        repeats: blocks of each group (public weights: 1, 2, 3, 4, 3, 3, 1).
    """

    def __init__(self, image_size: tuple[int, int], *, repeats: tuple[int, ...] = REPEATS) -> None:
        super().__init__()
        if len(repeats) != len(GROUPS) or min(repeats) < 1 or min(image_size) < 1:
            raise ValueError(f"mobilenet: repeats {repeats}, size {image_size}; give 7 numbers and 2 sides above 0")
        self.image_size = tuple(image_size)
        self.strides = (4, 8, 16, 32)
        self.grids = tuple(tuple(-(-side // stride) for side in image_size) for stride in self.strides)
        self.channels = tuple(GROUPS[i][1] for i in MAPS)
        self.noise_rates = NO_NOISE
        self.fresh_prefixes = ()
        blocks, width, ends = [halving_conv(3, STEM_WIDTH, 1)], STEM_WIDTH, []
        for (expansion, channels, stride), count in zip(GROUPS, repeats, strict=True):
            for i in range(count):
                blocks.append(InvertedResidual(width, channels, expansion, 1 if i else stride))
                width = channels
            ends.append(len(blocks) - 1)
        self.taps = tuple(ends[i] for i in MAPS)
        self.features = nn.CellList(blocks)

    def construct(self, image, noise=None):
        """Normalised image (B, 3, H, W) float32; noise is not used -> tuple of (B, C_s, H_s, W_s)."""
        if image.shape[2:] != self.image_size:
            raise ValueError(f"mobilenet: image is {image.shape[2:]}, but the network was built for {self.image_size}")
        x = ops.relu6(self.features[0](image))
        maps = ()
        for i in range(1, len(self.features)):
            x = self.features[i](x)
            if i in self.taps:
                maps += (x,)
        return maps

    def count_macs(self) -> int:
        """Multiply-accumulates of the convolutions for one image."""
        grid = tuple(-(-side // 2) for side in self.image_size)
        total = math.prod(grid) * self.features[0].weight.size
        for block in self.features[1:]:
            total += math.prod(grid) * (block.expand.weight.size if block.expands else 0)
            grid = tuple(-(-side // block.stride) for side in grid)
            total += math.prod(grid) * (block.depthwise.weight.size + block.project.weight.size)
        return total


def mobilenet_v2(image_size: tuple[int, int]) -> MobileNetV2:
    """MobileNetV2 1.0, 1.8 M parameters without its last convolution and classifier."""
    return MobileNetV2(image_size)
