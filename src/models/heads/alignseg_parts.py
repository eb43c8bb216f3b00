"""Parts of the AlignSeg head (spec, section 3): refinement blocks, aligned aggregation, aligned context, classifier.

Letters: B batch, C channels of a level, E decoder width, K classes, H x W finest grid, h x w grid of a coarser level,
p side of the pooled context.
"""

from mindspore import nn, ops
from mindspore.common.initializer import initializer

from src.functional import average_pool, resize_bilinear, spread
from src.models.heads.sampler import Sampler
from src.models.layers import conv2d, create_norm


def leaky_relu(x, slope):
    """x where it is positive, else slope * x; as a maximum its gradient takes six times as long on CPU."""
    if slope == 0.0:
        return ops.relu(x)
    return slope * x + (1.0 - slope) * ops.relu(x)


class Refinement(nn.Cell):
    """Residual refinement block (B, C, h, w) -> (B, E, h, w): 1x1 to E, plus two 3x3 through E / 4 of it."""

    def __init__(self, in_channels: int, channels: int, norm: str, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.unify = conv2d(in_channels, channels, 1, bias=False)
        self.conv1 = conv2d(channels, channels // 4, 3, bias=False)
        self.norm1 = create_norm(norm, channels // 4)
        self.conv2 = conv2d(channels // 4, channels, 3, bias=False)
        self.norm2 = create_norm(norm, channels)

    def construct(self, x):
        x = self.unify(x)
        residual = self.conv2(leaky_relu(self.norm1(self.conv1(x)), self.slope))
        return leaky_relu(self.norm2(x + residual), self.slope)

    def count_macs(self, positions: int) -> int:
        """Multiply-accumulates on a map of `positions` pixels."""
        return positions * sum(conv.weight.size for conv in (self.unify, self.conv1, self.conv2))


class Offsets(nn.Cell):
    """Offsets (B, 2, H, W) from two maps, joined (B, 2E, H, W); they start at zero."""

    def __init__(self, channels: int, norm: str, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.reduce = conv2d(2 * channels, channels, 1, bias=False)
        self.norm = create_norm(norm, channels)
        self.offset = conv2d(channels, 2, 3, bias=False)
        self.offset.weight.set_data(initializer("zeros", self.offset.weight.shape))

    def construct(self, joined):
        return self.offset(leaky_relu(self.norm(self.reduce(joined)), self.slope))

    def count_macs(self, positions: int) -> int:
        """Multiply-accumulates on a map of `positions` pixels."""
        return positions * (self.reduce.weight.size + self.offset.weight.size)


class AlignedSum(nn.Cell):
    """AlignFA: accumulated map (B, E, H, W) + coarser map (B, E, h, w), resized to it, each moved by its own offsets.

    Args:
        channels, norm, slope: E, see `create_norm`, see `leaky_relu`.
        align_up, align_acc: whether the resized and the accumulated map are moved; neither: a plain sum.
        sampler: moves them.
    """

    def __init__(
        self, channels: int, align_up: bool, align_acc: bool, sampler: Sampler, norm: str, slope: float
    ) -> None:
        super().__init__()
        self.align_up, self.align_acc, self.sampler = align_up, align_acc, sampler
        if align_up:
            self.offset_up = Offsets(channels, norm, slope)
        if align_acc:
            self.offset_acc = Offsets(channels, norm, slope)

    def construct(self, acc, deep):
        up = resize_bilinear(deep, acc.shape[2:], True)
        if not (self.align_up or self.align_acc):
            return acc + up
        joined = ops.concat((acc, up), 1)
        if self.align_up:
            up = self.sampler(up, self.offset_up(joined))
        if self.align_acc:
            acc = self.sampler(acc, self.offset_acc(joined))
        return up + acc

    def count_macs(self, positions: int) -> int:
        """Multiply-accumulates of the convolutions on a map of `positions` pixels."""
        heads = [self.offset_up] if self.align_up else []
        return sum(head.count_macs(positions) for head in heads + ([self.offset_acc] if self.align_acc else []))


class ContextBranch(nn.Cell):
    """1x1 in full width C, then 3x3 to E: (B, C, h, w) -> (B, E, h, w)."""

    def __init__(self, in_channels: int, channels: int, norm: str, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.conv1 = conv2d(in_channels, in_channels, 1, bias=False)
        self.norm1 = create_norm(norm, in_channels)
        self.conv2 = conv2d(in_channels, channels, 3, bias=False)
        self.norm2 = create_norm(norm, channels)

    def construct(self, x):
        x = leaky_relu(self.norm1(self.conv1(x)), self.slope)
        return leaky_relu(self.norm2(self.conv2(x)), self.slope)

    def count_macs(self, positions: int) -> int:
        """Multiply-accumulates on a map of `positions` pixels."""
        return positions * (self.conv1.weight.size + self.conv2.weight.size)


class AlignedContext(nn.Cell):
    """AlignCM (B, C, h, w) -> (B, E, h, w): a local branch plus p x p pooled context, laid over the map.

    Args:
        in_channels, channels: C, E.
        side: p.
        aligned: sample the context at learnt places; else resize it.
        sampler, norm, slope: as in AlignedSum.
    """

    def __init__(
        self, in_channels: int, channels: int, side: int, aligned: bool, sampler: Sampler, norm: str, slope: float
    ) -> None:
        super().__init__()
        self.side, self.aligned, self.sampler = side, aligned, sampler
        self.pooled = ContextBranch(in_channels, channels, norm, slope)
        self.local = ContextBranch(in_channels, channels, norm, slope)
        if aligned:
            self.offset = Offsets(channels, norm, slope)

    def construct(self, x):
        pooled = self.pooled(average_pool(x, self.side))
        local = self.local(x)
        over = resize_bilinear(pooled, local.shape[2:], True)
        if self.aligned:
            over = self.sampler(pooled, self.offset(ops.concat((local, over), 1)))
        return over + local

    def count_macs(self, positions: int) -> int:
        """Multiply-accumulates of the convolutions on a map of `positions` pixels."""
        total = self.pooled.count_macs(self.side**2) + self.local.count_macs(positions)
        return total + (self.offset.count_macs(positions) if self.aligned else 0)


class GlobalContext(nn.Cell):
    """Mean of the map through a 1x1 convolution, the same everywhere: (B, C, h, w) -> (B, E, h, w)."""

    def __init__(self, in_channels: int, channels: int, norm: str, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.conv = conv2d(in_channels, channels, 1, bias=False)
        self.norm = create_norm(norm, channels)

    def construct(self, x):
        y = leaky_relu(self.norm(self.conv(average_pool(x, 1))), self.slope)
        return ops.tile(y, (1, 1) + x.shape[2:])

    def count_macs(self, positions: int) -> int:
        """Multiply-accumulates, whatever the size of the map."""
        return self.conv.weight.size


class PixelClassifier(nn.Cell):
    """3x3 convolution, norm, dropout of channels, classifier: (B, E, H, W), keep factors (B, E) -> (B, K, H, W)."""

    def __init__(self, channels: int, num_classes: int, norm: str, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.conv = conv2d(channels, channels, 3)
        self.norm = create_norm(norm, channels)
        self.classifier = conv2d(channels, num_classes, 1)

    def construct(self, x, noise):
        x = leaky_relu(self.norm(self.conv(x)), self.slope)
        if noise is not None:
            x = x * spread(noise.expand_dims(-1).expand_dims(-1), x.shape)
        return self.classifier(x)

    def count_macs(self, positions: int) -> int:
        """Multiply-accumulates on a map of `positions` pixels."""
        return positions * (self.conv.weight.size + self.classifier.weight.size)
