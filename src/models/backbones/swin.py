"""Swin Transformer as mmsegmentation builds it: four stages of (shifted) window attention, one normalised map a stage.

Source: Liu et al., "Swin Transformer", ICCV 2021; what counts as a multiply-accumulate: specs/ecenet.md section 9.

Letters: B batch, H x W map, N = H W tokens, D token width, h attention heads, w window side, n = w w tokens of a
window, G windows of a map.

The image size is fixed when the network is built, so every map size, window layout and mask is a NumPy constant.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import TruncatedNormal, initializer

from src.models.backbones.swin_windows import WindowLayout, ceil_divide, relative_position_index, window_layout
from src.models.layers import (
    Attention,
    Mlp,
    add_residual,
    conv2d,
    init_linear_layers,
    layer_norm,
    linear,
    linear_rates,
    recompute_blocks,
)

PATCH = 4
STAGES = 4


class Rearrange(nn.Cell):
    """Moves rows of (B, N, D) to their places in (B, M, D) by a constant index (M,), in which N gives a row of zeros.

    One gather takes the place of padding, rolling and transposing, and takes less time than these on CPU. The gradient
    stays MindSpore's: a `bprop` that calls Python functions spoils later compilations of the same process (2.10).
    """

    def __init__(self, index: np.ndarray, rows: int) -> None:
        super().__init__()
        self.index = Tensor(index)
        self.pads = bool(index.max() == rows)

    def construct(self, x):
        if self.pads:
            x = ops.cat((x, ops.zeros((x.shape[0], 1, x.shape[2]), x.dtype)), 1)
        return ops.gather(x, self.index, 1)


class WindowAttention(Attention):
    """Self-attention in windows (B G, n, D) with a learned bias by relative position; mask (G, 1, n, n)."""

    def __init__(self, width: int, num_heads: int, window: int) -> None:
        super().__init__(width, num_heads, biased=True)
        table = initializer(TruncatedNormal(0.02), ((2 * window - 1) ** 2, num_heads), ms.float32)
        self.relative_position_bias_table = Parameter(table)
        self.position_index = Tensor(relative_position_index(window))

    def construct(self, windows, mask):
        bias = ops.gather(self.relative_position_bias_table, self.position_index, 0).transpose(2, 0, 1)  # (h, n, n)
        return super().construct(windows, bias, mask)


class SwinBlock(nn.Cell):
    """Window attention and MLP, each behind a norm and beside a residual: tokens (B, N, D) -> (B, N, D).

    Drop path takes the noise columns `column` (attention) and `column + 1` (MLP).
    """

    def __init__(
        self, width: int, num_heads: int, window: int, layout: WindowLayout, mlp_ratio: int, column: int
    ) -> None:
        super().__init__()
        self.tokens, self.column, self.mask = window * window, column, layout.mask
        self.to_windows = Rearrange(layout.slots, layout.tokens.size)
        self.from_windows = Rearrange(layout.tokens, layout.slots.size)
        self.norm1 = layer_norm(width)
        self.attn = WindowAttention(width, num_heads, window)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, mlp_ratio * width)

    def construct(self, x, noise=None):
        b, _, width = x.shape
        windows = self.to_windows(self.norm1(x)).reshape(-1, self.tokens, width)  # (B G, n, D)
        attended = self.from_windows(self.attn(windows, self.mask).reshape(b, -1, width))
        x = add_residual(x, attended, noise, self.column)
        return add_residual(x, self.mlp(self.norm2(x)), noise, self.column + 1)


def pad_to_multiple(x, axis, divisor):
    """Zeros behind the end of one axis, up to a multiple of divisor."""
    missing = -x.shape[axis] % divisor
    if missing == 0:
        return x
    return ops.cat((x, ops.zeros(x.shape[:axis] + (missing,) + x.shape[axis + 1 :], x.dtype)), axis)


class PatchMerging(nn.Cell):
    """Half the sides, twice the width: tokens (B, H W, D) -> (B, ceil(H / 2) ceil(W / 2), 2 D).

    The four tokens of a cell are joined channel by channel, row-major within a channel (unfold order).
    """

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.norm = layer_norm(4 * width)
        self.reduction = linear(4 * width, 2 * width, bias=False)

    def construct(self, x):
        b, _, width = x.shape
        x = pad_to_multiple(pad_to_multiple(x.reshape((b,) + self.grid + (width,)), 1, 2), 2, 2)
        x = x.reshape(b, x.shape[1] // 2, 2, x.shape[2] // 2, 2, width).transpose(0, 1, 3, 5, 2, 4)
        return self.reduction(self.norm(x.reshape(b, -1, 4 * width)))


class PatchEmbedding(nn.Cell):
    """Image (B, 3, H, W), padded right and bottom to multiples of 4 -> tokens (B, ceil(H / 4) ceil(W / 4), D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = conv2d(3, width, PATCH, stride=PATCH)
        self.norm = layer_norm(width)

    def construct(self, image):
        x = self.projection(pad_to_multiple(pad_to_multiple(image, 2, PATCH), 3, PATCH))
        b, width, height, breadth = x.shape
        return self.norm(x.reshape(b, width, height * breadth).transpose(0, 2, 1))


class SwinStage(nn.Cell):
    """Blocks on one map, every second one shifted: tokens (B, N, D) -> (B, N, D)."""

    def __init__(self, blocks: list[SwinBlock], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.CellList(blocks)
        self.downsample = downsample

    def construct(self, x, noise=None):
        for block in self.blocks:
            x = block(x, noise)
        return x


def check_arguments(image_size: tuple, depths: tuple, num_heads: tuple, window: int) -> None:
    """Raises ValueError for sizes that no Swin Transformer has."""
    if len(image_size) != 2 or min(image_size) < 1:
        raise ValueError(f"swin: image_size is {image_size}; give height and width in pixels, such as (512, 512)")
    for name, value in (("depths", depths), ("num_heads", num_heads)):
        if len(value) != STAGES or min(value) < 1:
            raise ValueError(f"swin: {name} is {value}; give {STAGES} positive numbers, one a stage")
    if window < 2:
        raise ValueError(f"swin: window is {window}; give at least 2 (released weights have 7 or 12)")


class SwinTransformer(nn.Cell):
    """Swin Transformer for images of one size.

    channels, strides, grids: width, stride and map size (H_s, W_s) of each stage, finest first; sides are rounded up.
    noise_rates: (2 sum(depths),) drop-path rates: column 2 i for the attention of block i, 2 i + 1 for its MLP.
    recompute: see `recompute_blocks`.

    Raises ValueError for impossible sizes, and when an image of another size comes in.
    """

    def __init__(
        self, image_size: tuple[int, int], *, embed_width: int, depths: tuple[int, ...], num_heads: tuple[int, ...],
        window: int, drop_path: float = 0.3, mlp_ratio: int = 4, recompute: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        check_arguments(image_size, depths, num_heads, window)
        self.image_size, self.depths, self.window, self.mlp_ratio = tuple(image_size), tuple(depths), window, mlp_ratio
        self.strides = tuple(PATCH * 2**i for i in range(STAGES))
        self.channels = tuple(embed_width * 2**i for i in range(STAGES))
        self.grids = tuple(tuple(ceil_divide(side, stride) for side in image_size) for stride in self.strides)
        self.num_layers = sum(depths)
        self.noise_rates = linear_rates(drop_path, self.num_layers)
        self.fresh_prefixes = ("norm0.", "norm1.", "norm2.", "norm3.")  # classification weights have none of them
        self.patch_embed = PatchEmbedding(embed_width)
        self.stages = nn.CellList([self.create_stage(i, num_heads[i]) for i in range(STAGES)])
        self.norm0, self.norm1, self.norm2, self.norm3 = (layer_norm(width) for width in self.channels)
        init_linear_layers(self, "trunc02")
        if recompute:
            recompute_blocks([block for stage in self.stages for block in stage.blocks])

    def create_stage(self, i: int, num_heads: int) -> SwinStage:
        """Stage i, counted from 0."""
        width, grid, first = self.channels[i], self.grids[i], sum(self.depths[:i])
        layouts = window_layout(grid, self.window, 0), window_layout(grid, self.window, self.window // 2)
        blocks = [
            SwinBlock(width, num_heads, self.window, layouts[j % 2], self.mlp_ratio, 2 * (first + j))
            for j in range(self.depths[i])
        ]
        return SwinStage(blocks, PatchMerging(width, grid) if i < STAGES - 1 else None)

    def construct(self, image, noise=None):
        """Normalised image float32 (B, 3, H, W), keep factors (B, 2 sum(depths)) or None -> maps (B, C_s, H_s, W_s)."""
        if image.shape[2:] != self.image_size:
            raise ValueError(f"swin: image is {image.shape[2:]}, but the network was built for {self.image_size}")
        x = self.patch_embed(image)
        norms = (self.norm0, self.norm1, self.norm2, self.norm3)
        features = ()
        for i, stage in enumerate(self.stages):
            x = stage(x, noise)
            features += (norms[i](x).transpose(0, 2, 1).reshape((x.shape[0], self.channels[i]) + self.grids[i]),)
            if i < STAGES - 1:
                x = stage.downsample(x)
        return features

    def layer_of(self, name: str) -> int:
        """Layer of a parameter, by its name here: 0 patches, 1 .. num_layers blocks, mergings as the block before."""
        place = name.split(".")
        if place[0] != "stages":
            return 0 if place[0] == "patch_embed" else self.num_layers + 1  # the norms of the maps
        blocks = int(place[3]) + 1 if place[2] == "blocks" else self.depths[int(place[1])]
        return sum(self.depths[: int(place[1])]) + blocks

    def count_macs(self) -> int:
        """Multiply-accumulates of one image: convolution, linear layers and both attention products.

        Projections and products count the padding of the windows, the MLP does not (the convention of spec section 9).
        """
        total = math.prod(self.grids[0]) * 3 * PATCH**2 * self.channels[0]
        for i, (width, depth, grid) in enumerate(zip(self.channels, self.depths, self.grids, strict=True)):
            padded = math.prod(ceil_divide(side, self.window) * self.window for side in grid)
            attention = padded * (4 * width**2 + 2 * self.window**2 * width)
            total += depth * (attention + math.prod(grid) * 2 * self.mlp_ratio * width**2)
            if i < STAGES - 1:
                total += math.prod(self.grids[i + 1]) * 8 * width**2
        return total


def swin_tiny(image_size: tuple[int, int], *, window: int = 7, **kwargs) -> SwinTransformer:
    """Swin-T; kwargs: drop_path, mlp_ratio, recompute."""
    sizes = {"embed_width": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)}
    return SwinTransformer(image_size, window=window, **sizes, **kwargs)


def swin_small(image_size: tuple[int, int], *, window: int = 7, **kwargs) -> SwinTransformer:
    """Swin-S; kwargs: drop_path, mlp_ratio, recompute."""
    sizes = {"embed_width": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)}
    return SwinTransformer(image_size, window=window, **sizes, **kwargs)


def swin_base(image_size: tuple[int, int], *, window: int = 12, **kwargs) -> SwinTransformer:
    """Swin-B; kwargs: drop_path, mlp_ratio, recompute."""
    sizes = {"embed_width": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}
    return SwinTransformer(image_size, window=window, **sizes, **kwargs)


def swin_large(image_size: tuple[int, int], *, window: int = 12, **kwargs) -> SwinTransformer:
    """Swin-L; kwargs: drop_path, mlp_ratio, recompute."""
    sizes = {"embed_width": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)}
    return SwinTransformer(image_size, window=window, **sizes, **kwargs)
