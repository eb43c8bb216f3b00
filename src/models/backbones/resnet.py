"""ResNet without dilation, four maps at strides 4, 8, 16, 32 (AlignSeg spec, sections 1.1, 2 and 9).

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; the stem of three 3x3 convolutions is that
of the ImageNet weights from which AlignSeg starts. Convolutions stride at the 3x3 of a bottleneck.

Letters: B batch, H x W image, C_s channels and H_s x W_s grid of stage s.
"""

import math

from mindspore import nn, ops

from src.functional import check_choice
from src.models.layers import NO_NOISE, conv2d, create_norm

STEMS = ("deep128", "plain7x7")
STEM_WIDTHS = {"deep128": ((3, 64), (64, 64), (64, 128)), "plain7x7": ((3, 64),)}
WIDTHS = (64, 128, 256, 512)  # of the 3x3 convolutions of the stages


class ConvNorm(nn.Cell):
    """Convolution without bias and its norm."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int, norm: str, dilation: int = 1
    ) -> None:
        super().__init__()
        self.conv = conv2d(in_channels, channels, kernel, stride=stride, bias=False, dilation=dilation)
        self.bn = create_norm(norm, channels)

    def construct(self, x):
        return self.bn(self.conv(x))


class Block(nn.Cell):
    """Residual block: (B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride)).

    Args:
        in_channels, width, stride: C, width of the inner convolutions, stride.
        bottleneck: 1x1, 3x3, 1x1 with C' = 4 width, or two 3x3 with C' = width.
        norm: see `create_norm`.
        dilation: of the 3x3 convolutions.
    """

    def __init__(
        self, in_channels: int, width: int, stride: int, bottleneck: bool, norm: str, dilation: int = 1
    ) -> None:
        super().__init__()
        self.bottleneck, self.channels = bottleneck, width * (4 if bottleneck else 1)
        if bottleneck:
            layers = ((in_channels, width, 1, 1), (width, width, 3, stride), (width, self.channels, 1, 1))
        else:
            layers = ((in_channels, width, 3, stride), (width, width, 3, 1))
        for i, (before, after, kernel, step) in enumerate(layers, 1):
            spacing = dilation if kernel == 3 else 1
            setattr(self, f"conv{i}", conv2d(before, after, kernel, stride=step, bias=False, dilation=spacing))
            setattr(self, f"bn{i}", create_norm(norm, after))
        self.projects = stride != 1 or in_channels != self.channels
        if self.projects:
            self.downsample = ConvNorm(in_channels, self.channels, 1, stride, norm)

    def construct(self, x):
        shortcut = self.downsample(x) if self.projects else x
        y = ops.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.bottleneck:
            y = self.bn3(self.conv3(ops.relu(y)))
        return ops.relu(y + shortcut)


class MaxPool(nn.Cell):
    """3x3 maxima at stride 2 with padding 1 of a map that is nowhere negative, (B, C, H, W) -> (B, C, H', W').

    H' = floor(H / 2) + 1 with `ceil`, floor((H + 1) / 2) without. Zeros serve as padding, because the map comes from a
    ReLU: nn.MaxPool2d pads with a 3-D kernel, and its plain one cannot round up.
    """

    def __init__(self, ceil: bool) -> None:
        super().__init__()
        self.ceil = ceil
        self.pool = nn.MaxPool2d(3, 2, pad_mode="valid")

    def construct(self, x):
        for axis in (2, 3):
            before, after = x.shape[:axis], x.shape[axis + 1 :]
            behind = padding_behind(x.shape[axis], self.ceil)
            x = ops.concat((ops.zeros(before + (1,) + after, x.dtype), x), axis)
            if behind:
                x = ops.concat((x, ops.zeros(before + (behind,) + after, x.dtype)), axis)
        return self.pool(x)


def padding_behind(length: int, ceil: bool) -> int:
    """Zeros behind the end of an axis so that windows of 3, which start at -1 and move by 2, end as they should."""
    return 2 - length % 2 if ceil else length % 2


def stage_grids(image_size: tuple[int, int], ceil: bool) -> tuple[tuple[int, int], ...]:
    """Grids (H_s, W_s) of the four stages (spec section 1.1)."""
    halves = [-(-side // 2) for side in image_size]
    grid = tuple(half // 2 + 1 if ceil else (half + 1) // 2 for half in halves)
    grids = [grid]
    for _ in range(3):
        grids.append(tuple(-(-side // 2) for side in grids[-1]))
    return tuple(grids)


class ResNet(nn.Cell):
    """ResNet that returns the maps after its four stages, (B, C_s, H_s, W_s), finest first.

    Args:
        image_size: (H, W), any.
        depths: blocks of each stage.
        bottleneck: see `Block`.
        stem: `deep128`, three 3x3 convolutions of 64, 64 and 128 channels (CSAIL's ImageNet weights), or `plain7x7`,
            one 7x7 of 64 (torchvision's). Weights do not go from one to the other.
        maxpool_ceil: pooling rounds up (AlignSeg) or down (torchvision); the same weights, maps of other sizes.
        norm: see `create_norm`.
    """

    def __init__(
        self, image_size: tuple[int, int], *, depths: tuple[int, ...], bottleneck: bool, stem: str = "deep128",
        maxpool_ceil: bool = True, norm: str = "sync_batch",
    ) -> None:  # fmt: skip
        super().__init__()
        check_choice("stem", stem, STEMS)
        if len(depths) != 4 or min(depths) < 1 or min(image_size) < 1:
            raise ValueError(f"resnet: depths {depths} and image size {image_size}; give 4 depths and 2 sides above 0")
        self.image_size = tuple(image_size)
        self.grids = stage_grids(self.image_size, maxpool_ceil)
        self.strides = (4, 8, 16, 32)
        self.noise_rates = NO_NOISE
        self.fresh_prefixes = ()
        kernel = 3 if stem == "deep128" else 7
        self.stem = nn.CellList(
            [ConvNorm(*widths, kernel, 1 if i else 2, norm) for i, widths in enumerate(STEM_WIDTHS[stem])]
        )
        self.pool = MaxPool(maxpool_ceil)
        channels, names = STEM_WIDTHS[stem][-1][1], []
        for s, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True)):
            blocks = []
            for i in range(depth):
                blocks.append(Block(channels, width, 2 if s and not i else 1, bottleneck, norm))
                channels = blocks[-1].channels
            names.append(f"layer{s + 1}")
            setattr(self, names[-1], nn.SequentialCell(blocks))
        self.channels = tuple(width * (4 if bottleneck else 1) for width in WIDTHS)

    def construct(self, image, noise=None):
        """Normalised image (B, 3, H, W) float32; noise is not used -> tuple of (B, C_s, H_s, W_s)."""
        if image.shape[2:] != self.image_size:
            raise ValueError(f"resnet: image is {image.shape[2:]}, but the network was built for {self.image_size}")
        x = image
        for layer in self.stem:
            x = ops.relu(layer(x))
        x1 = self.layer1(self.pool(x))
        x2 = self.layer2(x1)
        x3 = self.layer3(x2)
        return x1, x2, x3, self.layer4(x3)

    def count_macs(self) -> int:
        """Multiply-accumulates of the convolutions for one image (spec section 9.3)."""
        half = tuple(-(-side // 2) for side in self.image_size)
        total = math.prod(half) * sum(layer.conv.weight.size for layer in self.stem)
        before = self.grids[0]
        for grid, stage in zip(self.grids, (self.layer1, self.layer2, self.layer3, self.layer4), strict=True):
            for block in stage:
                # A bottleneck's first convolution still works on the grid that the block is given.
                early = block.conv1.weight.size if block.bottleneck else 0
                late = sum(p.size for name, p in block.parameters_and_names() if name.endswith("weight")) - early
                total += math.prod(before) * early + math.prod(grid) * late
                before = grid
        return total


def resnet_18(image_size, *, stem="plain7x7", **kwargs) -> ResNet:
    """ResNet-18: blocks (2, 2, 2, 2) of two 3x3 convolutions, channels 64, 128, 256, 512."""
    return ResNet(image_size, depths=(2, 2, 2, 2), bottleneck=False, stem=stem, **kwargs)


def resnet_50(image_size, *, stem="deep128", **kwargs) -> ResNet:
    """ResNet-50: bottlenecks (3, 4, 6, 3), channels 256, 512, 1024, 2048."""
    return ResNet(image_size, depths=(3, 4, 6, 3), bottleneck=True, stem=stem, **kwargs)


def resnet_101(image_size, *, stem="deep128", **kwargs) -> ResNet:
    """ResNet-101: bottlenecks (3, 4, 23, 3), channels 256, 512, 1024, 2048."""
    return ResNet(image_size, depths=(3, 4, 23, 3), bottleneck=True, stem=stem, **kwargs)
