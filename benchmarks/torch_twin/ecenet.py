"""ECENet head (spec sections 2 to 5) with the released switches, presets `iso16` and `hierarchical`; whole network.

Letters: B batch, K classes, S levels (finest first), C_s channels, E width, h heads, H x W map, N = H W positions.
Maps are channels-last, so that tokens (B, N, C) and maps (B, C, H, W) are views of each other.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.torch_twin.layers import to_map, to_tokens
from benchmarks.torch_twin.swin import create_swin
from benchmarks.torch_twin.vit import create_vit

# Switches of our head that the twin has in one position only.
FIXED = {
    "fr": True, "fr_gate": "linear", "fr_ratio": 0.5, "norm": "sync_batch", "embed_from": "layout", "pool_ratio": 1.0,
    "attn_sign": "reversed", "q_act": "none", "num_rounds": None, "updater": "gated", "ghost_up": True,
    "aggregate": "concat", "mask_prior": "diag", "init_linear": "fanin",
}  # fmt: skip
PRESETS = ("auto", "iso16", "hierarchical")


def pool_sides(num_classes: int) -> tuple[int, ...]:
    """Sides of the pooling grids of a mask: 1, 2, 3, 6 and int(sqrt(K)) made odd."""
    return (1, 2, 3, 6, int(math.sqrt(num_classes)) | 1)


class LayerNorm2d(nn.Module):
    """LayerNorm over the channels of each position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FeatureReconstruction(nn.Module):
    """(B, C, H, W) -> rebuilt map (B, C, H, W) and gated diverse map (B, C / 2, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.intrinsic = nn.Conv2d(channels, half, 1, bias=False)
        self.intrinsic_norm = nn.BatchNorm2d(half)
        self.diverse = nn.Conv2d(half, half, 3, padding=1, groups=half)
        self.diverse_norm = nn.BatchNorm2d(half)
        self.gate_reduce = nn.Linear(half, half // 2, bias=False)
        self.gate_expand = nn.Linear(half // 2, half, bias=False)
        self.combine = nn.Conv2d(2 * half, channels, 1, bias=False)
        self.norm = LayerNorm2d(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        intrinsic = self.intrinsic_norm(self.intrinsic(x))
        diverse = self.diverse_norm(self.diverse(intrinsic))
        gate = self.gate_expand(F.relu(self.gate_reduce(diverse.mean((2, 3)))))
        diverse = diverse * gate[:, :, None, None]
        return self.norm(self.combine(torch.cat((diverse, intrinsic), 1))), diverse


class ClassMask(nn.Module):
    """First masks: (B, E, H, W) -> (B, K, H, W)."""

    def __init__(self, channels: int, num_classes: int, num_heads: int) -> None:
        super().__init__()
        self.group = nn.Conv2d(channels, channels, 1, groups=num_heads, bias=False)
        self.classify = nn.Conv2d(channels, num_classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.group(x))


class ClassEmbedding(nn.Module):
    """Class embeddings (B, K, E) of the mask logits (B, K, H, W), pooled to five grids."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.pools = nn.ModuleList([nn.AdaptiveAvgPool2d(side) for side in pool_sides(num_classes)])
        self.linear = nn.Linear(sum(side * side for side in pool_sides(num_classes)), channels)

    def forward(self, mask: Tensor) -> Tensor:
        return self.linear(torch.cat([pool(mask).flatten(2) for pool in self.pools], -1))


class SemanticsAttention(nn.Module):
    """Pixels attend to class embeddings: map (B, E, H, W), embeddings (B, K, E) -> map, mask (B, K, H, W)."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_pixel, self.norm_class = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.query_depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.query_pointwise = nn.Conv2d(channels, channels, 1)
        self.key_value = nn.Linear(channels, 2 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)
        self.norm_mlp = nn.LayerNorm(channels)
        self.mlp_expand = nn.Conv2d(channels, 4 * channels, 1)
        self.mlp_depthwise = nn.Conv2d(4 * channels, 4 * channels, 3, padding=1, groups=4 * channels)
        self.act = nn.GELU()
        self.mlp_reduce = nn.Conv2d(4 * channels, channels, 1)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        grid, tokens = x.shape[2:], to_tokens(x)
        q = to_tokens(self.query_pointwise(self.query_depthwise(to_map(self.norm_pixel(tokens), grid))))
        key, value = self.key_value(self.norm_class(embedding)).chunk(2, -1)
        scale = (q.shape[2] // self.num_heads) ** -0.5
        # The mean over heads of the per-head similarities is one product over all channels.
        mask = (key @ q.transpose(1, 2)) * (scale / self.num_heads)  # (B, K, N)
        # Reversed sign: softmax(max(A) - A) = softmax(-A).
        read = F.scaled_dot_product_attention(*map(self.split_heads, (q, key, value)), scale=-scale)
        tokens = tokens + self.proj(read.transpose(1, 2).flatten(2))
        hidden = self.mlp_expand(to_map(self.norm_mlp(tokens), grid))
        return to_map(tokens, grid) + self.mlp_reduce(self.act(self.mlp_depthwise(hidden))), mask.unflatten(2, grid)


class EmbeddingUpdater(nn.Module):
    """Gated update of class embeddings: old, new (B, K, E) -> (B, K, E)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dynamic = nn.Linear(channels, 2 * channels)
        self.input, self.gate = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.gate_norm, self.dynamic_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.output, self.output_norm = nn.Linear(channels, channels), nn.LayerNorm(channels)

    def forward(self, old: Tensor, new: Tensor) -> Tensor:
        scale, shift = self.dynamic(new).chunk(2, -1)
        update = torch.sigmoid(self.gate_norm(self.gate(self.input(old) * scale)))
        return F.relu(self.output_norm(self.output(update * self.dynamic_norm(shift) + old)))


class GhostUpsample(nn.Module):
    """(B, E, H, W) -> (B, E, 2 H, 2 W), half of the channels from a depthwise convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.primary = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.primary_norm = nn.BatchNorm2d(2 * channels)
        self.cheap = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels, bias=False)
        self.cheap_norm = nn.BatchNorm2d(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        primary = F.relu(self.primary_norm(self.primary(x)))
        cheap = F.relu(self.cheap_norm(self.cheap(primary)))
        return F.pixel_shuffle(torch.cat((primary, cheap), 1), 2)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize with half-pixel centres."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


class ECENetHead(nn.Module):
    """S maps (B, C_s, H_s, W_s) -> logits (B, K, H_1, W_1), summed mask of levels S .. 2, and S diverse maps."""

    def __init__(
        self, in_channels: tuple[int, ...], grids: tuple[tuple[int, int], ...], num_classes: int, *,
        channels: int = 256, num_heads: int = 4, preset: str = "auto", dropout: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        levels, equal = len(in_channels), len(set(grids)) == 1
        steps = [0] * levels if preset == "iso16" or (preset == "auto" and equal) else range(levels)
        self.output_grid = tuple(grids[0])
        self.noise_columns = channels  # whole channels, at the rate (dropout) of the noise that comes in
        self.reconstruct = nn.ModuleList([FeatureReconstruction(c) for c in in_channels])
        self.laterals = nn.ModuleList([nn.Conv2d(c, channels, 1, bias=False) for c in in_channels])
        self.class_mask = ClassMask(channels, num_classes, num_heads)
        self.embeddings = nn.ModuleList([ClassEmbedding(num_classes, channels) for _ in range(levels)])
        self.attentions = nn.ModuleList([SemanticsAttention(channels, num_heads) for _ in range(levels - 1)])
        self.updaters = nn.ModuleList([EmbeddingUpdater(channels) for _ in range(levels - 1)])
        self.ghosts = nn.ModuleList([nn.Sequential(*[GhostUpsample(channels) for _ in range(n)]) for n in steps])
        self.fusion = nn.Conv2d(channels * levels, channels, 3, padding=1, bias=False)
        self.fusion_norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.confidence = nn.Linear(channels, num_classes)

    def forward(self, features: list[Tensor], noise: Tensor | None) -> dict[str, Tensor | list[Tensor]]:
        rebuilt, diverse = zip(*(fr(x) for fr, x in zip(self.reconstruct, features, strict=True)), strict=True)
        enhanced = [lateral(x) for lateral, x in zip(self.laterals, rebuilt, strict=True)]
        mask = self.class_mask(enhanced[-1])
        embedding = self.embeddings[-1](mask)
        supervised = 0.0
        for s in range(len(enhanced) - 2, -1, -1):
            supervised = supervised + resize(mask, self.output_grid)
            enhanced[s], mask = self.attentions[s](enhanced[s], embedding)
            embedding = self.updaters[s](embedding, self.embeddings[s](mask))
        maps = [resize(ghost(x), self.output_grid) for ghost, x in zip(self.ghosts, enhanced, strict=True)]
        fused = F.relu(self.fusion_norm(self.fusion(torch.cat(maps, 1))))
        if noise is not None:
            fused = fused * noise[:, :, None, None].to(fused.dtype)
        confidence = self.confidence(embedding).softmax(-1).diagonal(dim1=1, dim2=2)
        logits = self.classifier(fused) + confidence[:, :, None, None] * torch.sigmoid(supervised + mask)
        return {"logits": logits, "mask": supervised, "diverse": list(diverse)}


class Twin(nn.Module):
    """uint8 RGB images (B, 3, H, W) -> outputs of the head; noise (B, n) as ours, backbone's columns first."""

    def __init__(self, backbone: nn.Module, head: ECENetHead, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor, noise: Tensor | None = None) -> dict[str, Tensor | list[Tensor]]:
        image = (image.float() - self.mean) / self.std
        if noise is None:
            return self.head(self.backbone(image, None), None)
        split = self.backbone.noise_columns
        return self.head(self.backbone(image, noise[:, :split]), noise[:, split:])


def create_twin(model: dict, num_classes: int, image_size: tuple[int, int]) -> Twin:
    """The twin of our network with these settings: backbone, head, mean, std as in the configuration.

    Raises ValueError for a switch of the head that the twin does not have.
    """
    backbone, head = dict(model["backbone"]), dict(model["head"])
    name = backbone.pop("name")
    create = create_swin if name.startswith("swin") else create_vit
    if head.pop("name") != "ecenet" or head.get("preset", "auto") not in PRESETS:
        raise ValueError(f"the twin has the head ecenet with presets {', '.join(PRESETS)} only, got {model['head']}")
    for switch, value in FIXED.items():
        if head.pop(switch, value) != value:
            raise ValueError(f"the twin's head has {switch}={value!r} only, got {model['head'][switch]!r}")
    head.pop("init_classifier", None)  # the twin gets our weights
    trunk = create(name, tuple(image_size), **backbone)
    return Twin(trunk, ECENetHead(trunk.channels, trunk.grids, num_classes, **head), model["mean"], model["std"])
