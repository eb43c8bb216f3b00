"""Plain Vision Transformer with several taps (ECENet spec, section 6).

Letters: B batch, D width, N = h * w patch tokens of the h x w grid (stride 16).

Position embeddings belong to one grid. A network is built for one image size; weights of another grid are resized by
`src/models/resizing.py` when they are loaded, never in the graph.
"""

from mindspore import Parameter, nn, ops
from mindspore.common.initializer import TruncatedNormal, initializer

from src.functional import spread
from src.models.layers import (
    Attention,
    Mlp,
    add_residual,
    init_linear_layers,
    layer_norm,
    linear,
    linear_rates,
    recompute_blocks,
)

PATCH = 16
NORM_EPSILON = 1e-6


class Block(nn.Cell):
    """Pre-norm transformer block on tokens (B, N, D); noise columns first and first + 1 drop its branches."""

    def __init__(self, width: int, num_heads: int, first_column: int) -> None:
        super().__init__()
        self.norm1 = layer_norm(width, NORM_EPSILON)
        self.attn = Attention(width, num_heads)
        self.norm2 = layer_norm(width, NORM_EPSILON)
        self.mlp = Mlp(width, 4 * width)
        self.first_column = first_column

    def construct(self, x, noise):
        x = add_residual(x, self.attn(self.norm1(x)), noise, self.first_column)
        return add_residual(x, self.mlp(self.norm2(x)), noise, self.first_column + 1)


class PatchEmbed(nn.Cell):
    """16 x 16 patches to tokens: (B, 3, H, W) -> (B, N, D), as a product (a strided convolution is slow on CPU)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = linear(3 * PATCH * PATCH, width)

    def construct(self, image):
        b, _, height, width = image.shape
        h, w = height // PATCH, width // PATCH
        patches = image.reshape(b, 3, h, PATCH, w, PATCH).transpose(0, 2, 4, 1, 3, 5)  # (B, h, w, 3, 16, 16)
        return self.proj(patches.reshape(b, h * w, 3 * PATCH * PATCH))


class VisionTransformer(nn.Cell):
    """ViT that returns the maps after the tapped blocks, each (B, D, H / 16, W / 16).

    Args:
        image_size: (H, W), multiples of 16.
        taps: 1-based numbers of the blocks whose output is returned, ascending; the last must be the last block.
        class_token: carry a class token through the blocks (dropped at the taps). Off as in SegViT.
        tap_norm: LayerNorm (eps 1e-6) of its own at every tap, because the residual stream is not normalised.
        drop_path: rate of the last block; grows linearly from 0.
        recompute: see `recompute_blocks`.
    """

    def __init__(
        self, image_size: tuple[int, int], *, width: int, depth: int, num_heads: int, taps: tuple[int, ...],
        class_token: bool = False, tap_norm: bool = True, drop_path: float = 0.1, recompute: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        height, image_width = image_size
        if height % PATCH or image_width % PATCH:
            fit = tuple(-(-side // PATCH) * PATCH for side in image_size)
            raise ValueError(f"ViT image size {tuple(image_size)} is not a multiple of {PATCH}; use {fit}")
        if sorted(set(taps)) != list(taps) or not taps or taps[0] < 1 or taps[-1] != depth:
            raise ValueError(f"taps {tuple(taps)}: need ascending block numbers from 1 to {depth} that end at {depth}")
        self.grid = self.position_grid = (height // PATCH, image_width // PATCH)
        self.taps, self.width = tuple(taps), width
        self.channels = (width,) * len(taps)
        self.strides = (PATCH,) * len(taps)
        self.grids = (self.grid,) * len(taps)
        self.noise_rates = linear_rates(drop_path, depth)
        self.fresh_prefixes = ("norms.",)  # not in any pretrained file
        self.depth = self.num_layers = depth
        self.patch_embed = PatchEmbed(width)
        tokens = self.grid[0] * self.grid[1] + int(class_token)
        self.pos_embed = Parameter(initializer(TruncatedNormal(0.02), (1, tokens, width)))
        if class_token:
            self.cls_token = Parameter(initializer(TruncatedNormal(0.02), (1, 1, width)))
        self.class_token = class_token
        self.blocks = nn.CellList([Block(width, num_heads, 2 * i) for i in range(depth)])
        self.norms = nn.CellList([layer_norm(width, NORM_EPSILON) if tap_norm else nn.Identity() for _ in taps])
        init_linear_layers(self, "trunc02")
        if recompute:
            recompute_blocks(self.blocks)

    def construct(self, image, noise=None):
        """image (B, 3, H, W) float32, normalised; noise (B, 2 * depth) or None -> tuple of (B, D, h, w)."""
        x = self.embed(image)
        features = ()
        for i in range(self.depth):
            x = self.blocks[i](x, noise)
            if i + 1 in self.taps:
                features += (self.to_map(self.norms[len(features)](x)),)
        return features

    def embed(self, image):
        """Tokens (B, [1 +] N, D) with their positions, before the first block."""
        x = self.patch_embed(image)
        if self.class_token:
            x = ops.concat((ops.broadcast_to(self.cls_token, (x.shape[0], 1, self.width)), x), 1)
        return x + spread(self.pos_embed, x.shape)

    def last_keys(self, image):
        """Keys (B, N, D) of the last block's attention, heads side by side, without the class token."""
        x = self.embed(image)
        for i in range(self.depth - 1):
            x = self.blocks[i](x, None)
        last = self.blocks[self.depth - 1]
        keys = ops.split(last.attn.qkv(last.norm1(x)), self.width, 2)[1]
        return keys[:, 1:] if self.class_token else keys

    def to_map(self, tokens):
        """(B, N, D), with or without class token -> (B, D, h, w)."""
        if self.class_token:
            tokens = tokens[:, 1:]
        return tokens.transpose(0, 2, 1).reshape(tokens.shape[0], self.width, self.grid[0], self.grid[1])

    def layer_of(self, name: str) -> int:
        """Layer of a parameter by its name here: 0 embeddings, 1 .. num_layers blocks, num_layers + 1 norms of taps."""
        place = name.split(".")
        if place[0] == "blocks":
            return int(place[1]) + 1
        return self.num_layers + 1 if place[0] == "norms" else 0

    def count_macs(self) -> int:
        """Multiply-accumulates of one image (spec section 9: products of layers and attention only)."""
        n, d = self.grid[0] * self.grid[1] + int(self.class_token), self.width
        patches = self.grid[0] * self.grid[1]
        return self.depth * (12 * d * d * n + 2 * n * n * d) + 3 * PATCH * PATCH * d * patches


def vit_tiny(image_size, *, taps=(3, 6, 9, 12), drop_path=0.1, **kwargs) -> VisionTransformer:
    """ViT-Ti/16: width 192, 12 blocks, 3 heads."""
    return VisionTransformer(image_size, width=192, depth=12, num_heads=3, taps=taps, drop_path=drop_path, **kwargs)


def vit_small(image_size, *, taps=(3, 6, 9, 12), drop_path=0.1, **kwargs) -> VisionTransformer:
    """ViT-S/16: width 384, 12 blocks, 6 heads."""
    return VisionTransformer(image_size, width=384, depth=12, num_heads=6, taps=taps, drop_path=drop_path, **kwargs)


def vit_base(image_size, *, taps=(3, 6, 9, 12), drop_path=0.1, **kwargs) -> VisionTransformer:
    """ViT-B/16: width 768, 12 blocks, 12 heads."""
    return VisionTransformer(image_size, width=768, depth=12, num_heads=12, taps=taps, drop_path=drop_path, **kwargs)


def vit_large(image_size, *, taps=(6, 12, 18, 24), drop_path=0.3, **kwargs) -> VisionTransformer:
    """ViT-L/16: width 1024, 24 blocks, 16 heads."""
    return VisionTransformer(image_size, width=1024, depth=24, num_heads=16, taps=taps, drop_path=drop_path, **kwargs)
