"""Plain Vision Transformer with several taps (ECENet spec, section 6).

Letters: B batch, D width, N = h * w patch tokens of the h x w grid (stride 16).

Position embeddings belong to one grid. A network is built for one image size; weights of another grid are resized by
`src/models/resizing.py` when they are loaded, never in the graph.
"""

from mindspore import Parameter, nn, ops
from mindspore.common.initializer import TruncatedNormal, initializer

from src.functional import check_choice, spread
from src.models.layers import (
    Attention,
    Mlp,
    add_residual,
    gelu,
    init_linear_layers,
    layer_norm,
    linear,
    linear_rates,
    recompute_blocks,
)

PATCH = 16
NORM_EPSILON = 1e-6
READOUTS = ("drop", "project")


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


class ProjectReadout(nn.Cell):
    """Class token into every patch token: (B, 1 + N, D) -> (B, N, D) by a linear layer of both, and GELU.

    R. Ranftl et al., "Vision Transformers for Dense Prediction", ICCV 2021: readout "project".
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = linear(2 * width, width)
        self.gelu = gelu()

    def construct(self, tokens):
        patches = tokens[:, 1:]
        return self.gelu(self.linear(ops.concat((patches, spread(tokens[:, :1], patches.shape)), 2)))


class VisionTransformer(nn.Cell):
    """ViT that returns the maps after the tapped blocks, each (B, D, H / 16, W / 16).

    Args:
        image_size: (H, W), multiples of 16.
        taps: 1-based numbers of the blocks whose output is returned, ascending; the last must be the last block.
        class_token: carry a class token through the blocks. Off as in SegViT.
        readout: what taps do with a class token: `drop` it, or `project` it into every patch, see `ProjectReadout`.
        tap_norm: LayerNorm (eps 1e-6) of its own at every tap, because the residual stream is not normalised.
        drop_path: rate of the last block; grows linearly from 0.
        recompute: see `recompute_blocks`.
        whole_depth: blocks of the network from which the weights come, where this one is cut after `depth` of them;
            loading passes over the others.
    """

    def __init__(
        self, image_size: tuple[int, int], *, width: int, depth: int, num_heads: int, taps: tuple[int, ...],
        class_token: bool = False, readout: str = "drop", tap_norm: bool = True, drop_path: float = 0.1,
        recompute: bool = False, whole_depth: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_choice("readout", readout, READOUTS)
        if readout == "project" and not class_token:
            raise ValueError("readout 'project' needs class_token true: it is what is projected")
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
        self.fresh_prefixes = ("norms.", "readouts.")  # not in any pretrained file
        self.unbuilt_prefixes = tuple(f"blocks.{i}." for i in range(depth, whole_depth or depth))
        self.depth = self.num_layers = depth
        self.patch_embed = PatchEmbed(width)
        tokens = self.grid[0] * self.grid[1] + int(class_token)
        self.pos_embed = Parameter(initializer(TruncatedNormal(0.02), (1, tokens, width)))
        if class_token:
            self.cls_token = Parameter(initializer(TruncatedNormal(0.02), (1, 1, width)))
        self.class_token, self.projects = class_token, readout == "project"
        if self.projects:
            self.readouts = nn.CellList([ProjectReadout(width) for _ in taps])
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
                features += (self.to_map(self.read_out(len(features), x)),)
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
        return self.drop_class(ops.split(last.attn.qkv(last.norm1(x)), self.width, 2)[1])

    def read_out(self, tap, x):
        """Tokens (B, [1 +] N, D) after a tapped block -> what the tap gives, (B, N, D)."""
        x = self.norms[tap](x)
        return self.readouts[tap](x) if self.projects else self.drop_class(x)

    def drop_class(self, tokens):
        """(B, [1 +] N, D) -> (B, N, D)."""
        return tokens[:, 1:] if self.class_token else tokens

    def to_map(self, tokens):
        """(B, N, D) -> (B, D, h, w)."""
        return tokens.transpose(0, 2, 1).reshape(tokens.shape[0], self.width, self.grid[0], self.grid[1])

    def layer_of(self, name: str) -> int:
        """Layer of a parameter by its name here: 0 embeddings, 1 .. num_layers blocks, num_layers + 1 those of taps."""
        place = name.split(".")
        if place[0] == "blocks":
            return int(place[1]) + 1
        return self.num_layers + 1 if place[0] in ("norms", "readouts") else 0

    def count_macs(self) -> int:
        """Multiply-accumulates of one image (spec section 9: products of layers and attention only)."""
        n, d = self.grid[0] * self.grid[1] + int(self.class_token), self.width
        patches = self.grid[0] * self.grid[1]
        taps = len(self.taps) * 2 * d * d * patches if self.projects else 0
        return self.depth * (12 * d * d * n + 2 * n * n * d) + 3 * PATCH * PATCH * d * patches + taps


def sized(image_size, whole_depth: int, **options) -> VisionTransformer:
    """A network of a published size, whole or cut after a smaller `depth`."""
    if options["depth"] > whole_depth:
        raise ValueError(f"depth {options['depth']}: this network has {whole_depth} blocks; give 1 to {whole_depth}")
    return VisionTransformer(image_size, **{"whole_depth": whole_depth, **options})


def vit_tiny(image_size, *, taps=(3, 6, 9, 12), depth=12, drop_path=0.1, **kwargs) -> VisionTransformer:
    """ViT-Ti/16: width 192, 12 blocks, 3 heads; a smaller depth cuts it there."""
    return sized(image_size, 12, width=192, num_heads=3, taps=taps, depth=depth, drop_path=drop_path, **kwargs)


def vit_small(image_size, *, taps=(3, 6, 9, 12), depth=12, drop_path=0.1, **kwargs) -> VisionTransformer:
    """ViT-S/16: width 384, 12 blocks, 6 heads; a smaller depth cuts it there."""
    return sized(image_size, 12, width=384, num_heads=6, taps=taps, depth=depth, drop_path=drop_path, **kwargs)


def vit_base(image_size, *, taps=(3, 6, 9, 12), depth=12, drop_path=0.1, **kwargs) -> VisionTransformer:
    """ViT-B/16: width 768, 12 blocks, 12 heads; a smaller depth cuts it there."""
    return sized(image_size, 12, width=768, num_heads=12, taps=taps, depth=depth, drop_path=drop_path, **kwargs)


def vit_large(image_size, *, taps=(6, 12, 18, 24), depth=24, drop_path=0.3, **kwargs) -> VisionTransformer:
    """ViT-L/16: width 1024, 24 blocks, 16 heads; a smaller depth cuts it there."""
    return sized(image_size, 24, width=1024, num_heads=16, taps=taps, depth=depth, drop_path=drop_path, **kwargs)
