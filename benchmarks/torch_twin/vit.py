"""Plain Vision Transformer with several taps (ECENet spec, section 6).

Letters: B batch, D width, N = h * w tokens of the h x w grid (stride 16).
"""

import torch
from torch import Tensor, nn

from benchmarks.torch_twin.layers import Attention, Mlp, add_residual, to_map, to_tokens

PATCH = 16
NORM_EPSILON = 1e-6
SIZES = {"vit_tiny": (192, 3), "vit_small": (384, 6), "vit_base": (768, 12)}  # width, heads; 12 blocks each
TAPS = (3, 6, 9, 12)


class Block(nn.Module):
    """Pre-norm transformer block; noise columns `column` and `column + 1` drop its branches."""

    def __init__(self, width: int, num_heads: int, column: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.mlp = Mlp(width, 4 * width)
        self.column = column

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        x = add_residual(x, self.attn(self.norm1(x)), noise, self.column)
        return add_residual(x, self.mlp(self.norm2(x)), noise, self.column + 1)


class PatchEmbed(nn.Module):
    """Image (B, 3, H, W) -> tokens (B, N, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, image: Tensor) -> Tensor:
        return to_tokens(self.proj(image))


class VisionTransformer(nn.Module):
    """ViT without class token that returns the normalised maps after the tapped blocks, each (B, D, h, w)."""

    def __init__(
        self, image_size: tuple[int, int], *, width: int, depth: int, num_heads: int, taps: tuple[int, ...],
        drop_path: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.grid = (image_size[0] // PATCH, image_size[1] // PATCH)
        self.taps = tuple(taps)
        self.channels, self.grids = (width,) * len(taps), (self.grid,) * len(taps)
        self.noise_columns = 2 * depth  # the rates (drop_path) are those of the noise that comes in
        self.patch_embed = PatchEmbed(width)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], width))
        self.blocks = nn.ModuleList([Block(width, num_heads, 2 * i) for i in range(depth)])
        self.norms = nn.ModuleList([nn.LayerNorm(width, eps=NORM_EPSILON) for _ in taps])

    def forward(self, image: Tensor, noise: Tensor | None) -> list[Tensor]:
        x = self.patch_embed(image) + self.pos_embed
        features = []
        for i, block in enumerate(self.blocks, 1):
            x = block(x, noise)
            if i in self.taps:
                features.append(to_map(self.norms[len(features)](x), self.grid))
        return features


def create_vit(name: str, image_size: tuple[int, int], **options) -> VisionTransformer:
    """`vit_tiny`, `vit_small`, `vit_base`, or `vit` with width, depth, num_heads and taps in options."""
    if name in SIZES:
        width, num_heads = SIZES[name]
        options = {"width": width, "depth": 12, "num_heads": num_heads, "taps": TAPS, **options}
    return VisionTransformer(image_size, **options)
