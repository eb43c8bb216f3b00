"""Public weights to ours, one name to one name: the released ECENet, and plain Vision Transformers.

Letters: D and E widths, K classes, L side of the largest pooling grid, N position embeddings.
"""

import math

import numpy as np

from src.models.backbones.swin import SwinTransformer
from src.models.backbones.vit import PATCH as VIT_PATCH
from src.models.backbones.vit import VisionTransformer
from src.models.conversion_convolutional import convert_alignseg, convert_mobilenet, convert_resnet
from src.models.conversion_matching import Converted, build, count, dimensions, expected_parameters, match
from src.models.conversion_names import HEAD_MODULES, IGNORED, SOURCES, SWIN_MODULES, VIT_MODULES
from src.models.conversion_text import convert_text
from src.models.heads.ecenet import ECENetHead
from src.models.heads.ecenet_parts import POOL_GRIDS


def convert(source: str, weights: dict[str, np.ndarray], *, class_token: bool = False) -> Converted:
    """Public weights by name -> ours in float32; class_token keeps the class token of a timm_vit file.

    Raises ValueError that lists every missing, unexpected, doubly mapped and misshapen name.
    """
    if source not in SOURCES:
        raise ValueError(f"source {source!r} is not one of {', '.join(map(repr, SOURCES))}")
    if source == "timm_vit":
        return convert_vit(weights, class_token)
    if class_token:
        raise ValueError(f"class_token belongs to source timm_vit; {source} has none")
    if source == "alignseg":
        return convert_alignseg(weights)
    if source == "mobilenet_v2":
        return convert_mobilenet(weights)
    if source == "clip_text":
        return convert_text(weights)
    return convert_ecenet(weights) if source == "released_ecenet" else convert_resnet(weights, source == "resnet_bgr")


def convert_ecenet(weights: dict[str, np.ndarray]) -> Converted:
    """The released ECENet, its head alone or with its Swin."""
    dropped = tuple(name for name in weights if name.rsplit(".", 1)[-1] in IGNORED)
    kept = {name: value for name, value in weights.items() if name not in dropped}
    prefixed = any(name.startswith(("backbone.", "decode_head.")) for name in kept)
    head = {name.removeprefix("decode_head."): value for name, value in kept.items() if name.startswith("decode_head.")}
    expected = expected_parameters("head", build_head(head if prefixed else kept))
    rules = [("decode_head." if prefixed else "", "head.", HEAD_MODULES)]
    swin = {name.removeprefix("backbone."): value for name, value in kept.items() if name.startswith("backbone.")}
    if swin:
        expected |= expected_parameters("backbone", build_swin(swin))
        rules.append(("backbone.", "backbone.", SWIN_MODULES))
    return Converted(match(kept, rules, expected), dropped, None)


def convert_vit(weights: dict[str, np.ndarray], class_token: bool) -> Converted:
    """A timm VisionTransformer without its last norm and classifier. Norms of our taps are in no such file."""
    clamps = sorted(name for name in weights if name.startswith("clamp."))
    if clamps:
        raise ValueError(
            f"this file works only with clamps in its forward pass ({', '.join(clamps)}), which a plain network does "
            "not have; convert the plain recalibrated file of the same weights instead"
        )
    network, grid = build_vit(weights, class_token)
    dropped = tuple(
        name for name in weights
        if name.startswith(("norm.", "head.")) or (name == "cls_token" and not class_token)
    )  # fmt: skip
    kept = {name: value for name, value in weights.items() if name not in dropped}
    if not class_token:
        kept["pos_embed"] = kept["pos_embed"][:, 1:]
        dropped += ("pos_embed[:, 0]",)
    expected = expected_parameters("backbone", network)
    return Converted(match(kept, [("", "backbone.", VIT_MODULES)], expected), dropped, grid)


def build_head(weights: dict[str, np.ndarray]) -> ECENetHead:
    """The released head of the sizes that its weights show."""
    levels = count(weights, r"laterals\.(\d+)\.")
    classifier, group, code, *laterals = dimensions(
        weights, "conv_seg.weight", "learner.0.weight", "token_emb.0.cls_learner.weight",
        *(f"laterals.{i}.weight" for i in range(levels)),
    )  # fmt: skip
    classes, width = classifier[:2]
    side = math.isqrt(max(code[1] - sum(n * n for n in POOL_GRIDS), 1))  # L
    return build(
        ECENetHead, tuple(shape[1] for shape in laterals), ((1, 1),) * levels, classes, channels=width,
        num_heads=max(width // max(group[1], 1), 1), preset="hierarchical",
        pool_ratio=(side + 0.5) / math.sqrt(classes),  # the half keeps int() from falling below L
    )  # fmt: skip


def build_swin(weights: dict[str, np.ndarray]) -> SwinTransformer:
    """The Swin Transformer of the sizes that its weights show; none of them depends on the image size."""
    stages = range(count(weights, r"stages\.(\d+)\."))
    tables = (f"stages.{i}.blocks.0.attn.w_msa.relative_position_bias_table" for i in stages)
    patch, expand, *tables = dimensions(
        weights, "patch_embed.projection.weight", "stages.0.blocks.0.ffn.layers.0.0.weight", *tables
    )
    return build(
        SwinTransformer, (32, 32), embed_width=patch[0], depths=tuple(
            count(weights, rf"stages\.{i}\.blocks\.(\d+)\.") for i in stages
        ), num_heads=tuple(shape[1] for shape in tables), window=(math.isqrt(tables[0][0]) + 1) // 2,
        mlp_ratio=expand[0] // expand[1],
    )  # fmt: skip


def build_vit(weights: dict[str, np.ndarray], class_token: bool) -> tuple[VisionTransformer, tuple[int, int]]:
    """The Vision Transformer of the sizes that its weights show, without norms of taps, and its grid of positions."""
    patch, positions = dimensions(weights, "patch_embed.proj.weight", "pos_embed")
    side = math.isqrt(max(positions[1] - 1, 0))
    if not side or positions[1] != side * side + 1:
        raise ValueError(f"pos_embed {positions}: need a class token and a square grid, such as (1, 1 + 14 * 14, D)")
    depth = count(weights, r"blocks\.(\d+)\.")
    network = build(
        VisionTransformer, (side * VIT_PATCH, side * VIT_PATCH), width=patch[0], depth=depth, num_heads=1,
        taps=(depth,), class_token=class_token, tap_norm=False,
    )  # fmt: skip
    return network, (side, side)
