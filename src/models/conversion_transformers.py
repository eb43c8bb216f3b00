"""Public weights of Vision Transformers and Swin Transformers to ours.

Letters: C and D widths, h heads, d width of a head, N position embeddings.
"""

import math
import re

import numpy as np

from src.models.backbones.swin import SwinTransformer
from src.models.backbones.vit import PATCH as VIT_PATCH
from src.models.backbones.vit import VisionTransformer
from src.models.conversion_matching import Converted, build, count, dimensions, expected_parameters, match
from src.models.conversion_names import (
    AUGREG_NAMES,
    IGNORED,
    OFFICIAL_SWIN_MODULES,
    SWIN_MODULES,
    VIT_EXTRAS,
    VIT_MODULES,
)

# Names that tell the sizes of a Swin Transformer: its stages, first convolution, and of a block, table and first layer.
SWIN_NAMES = {
    "swin": ("layers", "patch_embed.proj", "attn.relative_position_bias_table", "mlp.fc1"),
    "mm_swin": ("stages", "patch_embed.projection", "attn.w_msa.relative_position_bias_table", "ffn.layers.0.0"),
}
SWIN_EXTRAS = ("norm.", "head.", "decode_head.", "auxiliary_head.")  # a classifier's end, mmsegmentation's heads
# Of each row-major token of a 2 x 2 cell, the place at which the official Swin joins it: column by column.
OFFICIAL_BLOCKS = (0, 2, 1, 3)
JOINED = ("query", "key", "value")


def convert_vit(source: str, weights: dict[str, np.ndarray], class_token: bool, least: float) -> Converted:
    """A Vision Transformer without its last norm and classifier. Norms of our taps are in no such file."""
    refuse_clamps(weights)
    turned: tuple[str, ...] = ()
    if source == "augreg_vit":
        weights, turned = from_augreg(weights)
    if source == "dino_vit":
        weights = {re.sub(r"^(module\.)?(backbone\.)?", "", name): value for name, value in weights.items()}
    extra_tokens = 1 + ("dist_token" in weights and source == "deit_vit")
    network, grid = build_vit(weights, class_token, extra_tokens)
    dropped = tuple(
        name for name in weights
        if name.startswith(("norm.", *VIT_EXTRAS[source])) or (name == "cls_token" and not class_token)
    )  # fmt: skip
    kept = {name: value for name, value in weights.items() if name not in dropped}
    first = int(class_token)
    positions = kept["pos_embed"]
    kept["pos_embed"] = np.concatenate([positions[:, :first], positions[:, extra_tokens:]], 1)
    dropped += tuple(f"pos_embed[:, {i}]" for i in range(first, extra_tokens))
    rules = [("", "backbone.", VIT_MODULES)]
    result = match(kept, rules, expected_parameters("backbone", network), least)
    ours = {f"backbone.{name}" for name in turned} & result.weights.keys()
    rearranged = tuple(name for name in result.weights if name in ours.union(result.rearranged))
    return result._replace(dropped=dropped, grid=grid, rearranged=rearranged)


def refuse_clamps(weights: dict[str, np.ndarray]) -> None:
    """Raises ValueError for weights of a quantised network, which compute something else without their clamps."""
    clamps = sorted(name for name in weights if name.startswith("clamp."))
    if clamps:
        raise ValueError(
            f"this file works only with clamps in its forward pass ({', '.join(clamps)}), which a plain network does "
            "not have; convert the plain recalibrated file of the same weights instead"
        )


def build_vit(
    weights: dict[str, np.ndarray], class_token: bool, extra_tokens: int
) -> tuple[VisionTransformer, tuple[int, int]]:
    """The Vision Transformer of the sizes that its weights show, without norms of taps, and its grid of positions.

    extra_tokens: position embeddings before those of the patches.
    """
    patch, positions = dimensions(weights, "patch_embed.proj.weight", "pos_embed")
    side = math.isqrt(max(positions[1] - extra_tokens, 0))
    if not side or positions[1] != side * side + extra_tokens:
        more = " and a distillation token" if extra_tokens > 1 else ""
        raise ValueError(
            f"pos_embed {positions}: need a class token{more} and a square grid, such as (1, {extra_tokens} + 196, D)"
        )
    depth = count(weights, r"blocks\.(\d+)\.")
    network = build(
        VisionTransformer, (side * VIT_PATCH, side * VIT_PATCH), width=patch[0], depth=depth, num_heads=1,
        taps=(depth,), class_token=class_token, tap_norm=False,
    )  # fmt: skip
    return network, (side, side)


def from_augreg(weights: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """AugReg's arrays under timm's names and in timm's layout, and the names of those that were turned.

    JAX keeps the inputs of a layer first: kernels (in, out), (16, 16, 3, D), (D, h, d) of queries, keys and values, and
    (h, d, D) of what follows them. Names that are in no table stay, so that they are listed as unexpected.
    """
    plain = {name.removeprefix("opt/target/"): value for name, value in weights.items()}
    result: dict[str, np.ndarray] = {}
    for name, value in plain.items():
        number = re.search(r"encoderblock_(\d+)/", name)
        pattern = re.sub(r"encoderblock_\d+/", "encoderblock_#/", name)
        if pattern in AUGREG_NAMES:
            timm = AUGREG_NAMES[pattern].replace("#", number[1] if number else "")
            result[timm] = turn(pattern, value)
        elif not re.search(r"/(query|key|value)/(kernel|bias)$", name):
            result[name] = value
    for i in range(count(plain, r"Transformer/encoderblock_(\d+)/")):
        for kind, parameter in (("kernel", "weight"), ("bias", "bias")):
            names = [f"Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1/{part}/{kind}" for part in JOINED]
            if all(name in plain for name in names):
                parts = [plain[name].reshape(len(plain[name]), -1) for name in names]
                joined = np.concatenate([part.T if kind == "kernel" else part.reshape(-1) for part in parts])
                result[f"blocks.{i}.attn.qkv.{parameter}"] = joined
    turned = tuple(name for name in result if name.endswith(".weight") and "norm" not in name)
    return result, (*turned, *(name for name in result if name.endswith("qkv.bias")))


def turn(pattern: str, value: np.ndarray) -> np.ndarray:
    """One of AugReg's arrays in timm's layout."""
    if pattern == "embedding/kernel" and value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    return value.reshape(-1, value.shape[-1]).T if pattern.endswith("/kernel") else value


def convert_swin(source: str, weights: dict[str, np.ndarray], least: float) -> Converted:
    """A Swin Transformer alone or with a head, which is left out; classifiers have no norms of the stages."""
    prefix = "backbone." if any(name.startswith("backbone.") for name in weights) else ""
    dropped = tuple(
        name for name in weights
        if name.removeprefix(prefix).startswith(SWIN_EXTRAS) or name.endswith((*IGNORED, "attn_mask"))
    )  # fmt: skip
    kept = {name: value for name, value in weights.items() if name not in dropped}
    network = build_swin({name.removeprefix(prefix): value for name, value in kept.items()}, source)
    expected = expected_parameters("backbone", network)
    if not any(re.match(rf"{prefix}norm\d\.", name) for name in kept):
        norms = tuple(f"backbone.{name}" for name in network.fresh_prefixes)
        expected = {name: shape for name, shape in expected.items() if not name.startswith(norms)}
    table = OFFICIAL_SWIN_MODULES if source == "swin" else SWIN_MODULES
    result = match(kept, [(prefix, "backbone.", table)], expected, least)._replace(dropped=dropped)
    return unfold_merging(result) if source == "swin" else result


def unfold_merging(result: Converted) -> Converted:
    """Patch merging of the official Swin, whose inputs are four blocks of channels, in our order: by channel."""
    weights, changed = dict(result.weights), []
    for name, value in result.weights.items():
        if ".downsample." in name:
            order = np.arange(value.shape[-1]).reshape(4, -1)[list(OFFICIAL_BLOCKS)].T.reshape(-1)
            weights[name] = np.ascontiguousarray(value[..., order])
            changed.append(name)
    return result._replace(weights=weights, rearranged=(*result.rearranged, *changed))


def build_swin(weights: dict[str, np.ndarray], source: str) -> SwinTransformer:
    """The Swin Transformer of the sizes that its weights show; none of them depends on the image size."""
    stage, embedding, table, expansion = SWIN_NAMES[source]
    stages = range(count(weights, rf"{stage}\.(\d+)\."))
    patch, expand, *tables = dimensions(
        weights, f"{embedding}.weight", f"{stage}.0.blocks.0.{expansion}.weight",
        *(f"{stage}.{i}.blocks.0.{table}" for i in stages),
    )  # fmt: skip
    depths = tuple(count(weights, rf"{stage}\.{i}\.blocks\.(\d+)\.") for i in stages)
    return build(
        SwinTransformer, (32, 32), embed_width=patch[0], depths=depths, num_heads=tuple(shape[1] for shape in tables),
        window=(math.isqrt(tables[0][0]) + 1) // 2, mlp_ratio=expand[0] // expand[1],
    )  # fmt: skip
