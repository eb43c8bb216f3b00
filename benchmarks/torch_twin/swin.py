"""Swin Transformer with one normalised map a stage (Liu et al., ICCV 2021).

Letters: B batch, H x W map, N = H W tokens, D width, h heads, w window side, n = w w, G windows of a map.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.torch_twin.layers import Attention, Mlp, add_residual, to_map, to_tokens

PATCH = 4
STAGES = 4
OTHER_REGION = -100.0
SIZES = {  # embed_width, depths, num_heads, window
    "swin_tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "swin_small": (96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "swin_base": (128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
}


def partition(x: Tensor, window: int) -> Tensor:
    """Maps (B, H, W, C) with sides that are multiples of w -> windows (B G, n, C)."""
    b, height, width, c = x.shape
    x = x.view(b, height // window, window, width // window, window, c)
    return x.transpose(2, 3).reshape(-1, window * window, c)


def join(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Windows (B G, n, C) -> maps (B, H, W, C)."""
    c = windows.shape[-1]
    x = windows.view(-1, height // window, width // window, window, window, c)
    return x.transpose(2, 3).reshape(-1, height, width, c)


def shift_mask(padded: tuple[int, int], window: int, shift: int) -> Tensor:
    """(G, 1, n, n): OTHER_REGION between tokens that only the shift brought into one window."""
    region = torch.zeros(1, *padded, 1)
    bands = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, rows in enumerate(bands):
        for j, columns in enumerate(bands):
            region[:, rows, columns] = 3 * i + j
    region = partition(region, window).squeeze(-1)
    other = region[:, None, :, None] != region[:, None, None, :]
    return other * OTHER_REGION


class WindowAttention(Attention):
    """Self-attention in windows (B G, n, D), with a learned bias by relative position."""

    def __init__(self, width: int, num_heads: int, window: int) -> None:
        super().__init__(width, num_heads)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        offset = at[:, :, None] - at[:, None, :] + window - 1
        self.register_buffer("index", (offset[0] * (2 * window - 1) + offset[1]).flatten(), persistent=False)

    def forward(self, windows: Tensor, mask: Tensor | None = None) -> Tensor:
        n = windows.shape[1]
        bias = self.relative_position_bias_table[self.index].view(1, n, n, -1).permute(0, 3, 1, 2)  # (1, h, n, n)
        if mask is not None:
            bias = (bias + mask).repeat(windows.shape[0] // mask.shape[0], 1, 1, 1)
        return super().forward(windows, bias)


class SwinBlock(nn.Module):
    """(Shifted) window attention and MLP: tokens (B, N, D) -> (B, N, D); two noise columns for drop path."""

    def __init__(
        self, width: int, num_heads: int, window: int, shift: int, mlp_ratio: int, grid: tuple[int, int], column: int
    ) -> None:
        super().__init__()
        self.grid, self.window, self.shift, self.column = grid, window, shift, column
        self.padded = tuple(-(-side // window) * window for side in grid)
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, num_heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_ratio * width)
        self.register_buffer("mask", shift_mask(self.padded, window, shift) if shift else None, persistent=False)

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        x = add_residual(x, self.attend(self.norm1(x)), noise, self.column)
        return add_residual(x, self.mlp(self.norm2(x)), noise, self.column + 1)

    def attend(self, x: Tensor) -> Tensor:
        (height, width), (padded_height, padded_width) = self.grid, self.padded
        x = x.unflatten(1, self.grid)
        if self.padded != self.grid:
            x = F.pad(x, (0, 0, 0, padded_width - width, 0, padded_height - height))
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = join(self.attn(partition(x, self.window), self.mask), self.window, padded_height, padded_width)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), (1, 2))
        return x[:, :height, :width].flatten(1, 2)


class PatchMerging(nn.Module):
    """Half the sides, twice the width; the four tokens of a cell are joined in the channel order of `F.unfold`."""

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, self.grid)
        if self.grid[0] % 2 or self.grid[1] % 2:
            x = F.pad(x, (0, 0, 0, self.grid[1] % 2, 0, self.grid[0] % 2))
        b, height, width, c = x.shape
        x = x.view(b, height // 2, 2, width // 2, 2, c).permute(0, 1, 3, 5, 2, 4)
        return self.reduction(self.norm(x.reshape(b, -1, 4 * c)))


class PatchEmbedding(nn.Module):
    """Image (B, 3, H, W), padded to multiples of 4 -> tokens (B, N, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, PATCH, PATCH)
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        bottom, right = (-side % PATCH for side in image.shape[2:])
        if bottom or right:
            image = F.pad(image, (0, right, 0, bottom))
        return self.norm(to_tokens(self.projection(image)))


class SwinStage(nn.Module):
    """Blocks on one map, and what makes the next stage's map of it."""

    def __init__(self, blocks: list[SwinBlock], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        for block in self.blocks:
            x = block(x, noise)
        return x


class SwinTransformer(nn.Module):
    """Four maps (B, C_s, H_s, W_s), finest first, of a normalised image of one size."""

    def __init__(
        self, image_size: tuple[int, int], *, embed_width: int, depths: tuple[int, ...], num_heads: tuple[int, ...],
        window: int, drop_path: float = 0.3, mlp_ratio: int = 4,
    ) -> None:  # fmt: skip
        super().__init__()
        self.channels = tuple(embed_width * 2**i for i in range(STAGES))
        self.grids = tuple(tuple(-(-side // (PATCH * 2**i)) for side in image_size) for i in range(STAGES))
        self.noise_columns = 2 * sum(depths)  # the rates (drop_path) are those of the noise that comes in
        self.patch_embed = PatchEmbedding(embed_width)
        stages = []
        for i, (width, grid) in enumerate(zip(self.channels, self.grids, strict=True)):
            first = sum(depths[:i])
            blocks = [
                SwinBlock(width, num_heads[i], window, j % 2 * (window // 2), mlp_ratio, grid, 2 * (first + j))
                for j in range(depths[i])
            ]
            stages.append(SwinStage(blocks, PatchMerging(width, grid) if i < STAGES - 1 else None))
        self.stages = nn.ModuleList(stages)
        for i, width in enumerate(self.channels):
            self.add_module(f"norm{i}", nn.LayerNorm(width))

    def forward(self, image: Tensor, noise: Tensor | None) -> list[Tensor]:
        x = self.patch_embed(image)
        features = []
        for i, stage in enumerate(self.stages):
            x = stage(x, noise)
            features.append(to_map(getattr(self, f"norm{i}")(x), self.grids[i]))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return features


def create_swin(name: str, image_size: tuple[int, int], **options) -> SwinTransformer:
    """`swin_tiny`, `swin_small`, `swin_base`, or `swin` with all sizes in options."""
    if name in SIZES:
        width, depths, num_heads, window = SIZES[name]
        options = {"embed_width": width, "depths": depths, "num_heads": num_heads, "window": window, **options}
    return SwinTransformer(image_size, **options)
