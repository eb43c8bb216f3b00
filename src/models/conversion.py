"""Public weights to ours, one name to one name: the released ECENet, and plain Vision Transformers.

Letters: D and E widths, K classes, L side of the largest pooling grid, N position embeddings.

Name tables: `#` stands for one index, the same on both sides; `+` for the index one higher. On our side the parameters
of a module whose name contains `norm` are gamma, beta, moving_mean and moving_variance.
Sources of the names: the golden files of the released head (mmsegmentation naming), timm's VisionTransformer.
"""

import math
import re
from collections import defaultdict
from typing import NamedTuple

import numpy as np
from mindspore import nn
from mindspore.nn.utils import no_init_parameters

from src.models.backbones.swin import SwinTransformer
from src.models.backbones.vit import PATCH as VIT_PATCH
from src.models.backbones.vit import VisionTransformer
from src.models.heads.ecenet import ECENetHead
from src.models.heads.ecenet_parts import POOL_GRIDS

SOURCES = ("released_ecenet", "timm_vit")

HEAD_MODULES = {
    "conv_seg": "classifier",
    "trans": "confidence",
    "learner.0": "class_mask.group",
    "learner.1": "class_mask.classify",
    "laterals.#": "laterals.#",
    "token_emb.#.cls_learner": "embeddings.#.linear",
    "proj.conv": "fusion",
    "proj.bn": "fusion_norm",
    "transfer.#.norm_low": "attentions.#.norm_pixel",
    "transfer.#.norm_high": "attentions.#.norm_class",
    "transfer.#.cross_attn.q.depthwise_conv.conv": "attentions.#.query_depthwise",
    "transfer.#.cross_attn.q.pointwise_conv.conv": "attentions.#.query_pointwise",
    "transfer.#.cross_attn.kv": "attentions.#.key_value",
    "transfer.#.cross_attn.proj": "attentions.#.proj",
    "transfer.#.norm_mlp": "attentions.#.norm_mlp",
    "transfer.#.mlp.0": "attentions.#.mlp_expand",
    "transfer.#.mlp.1": "attentions.#.mlp_depthwise",
    "transfer.#.mlp.4": "attentions.#.mlp_reduce",
    "gated_tokens.#.dynamic_layer": "updaters.#.dynamic",
    "gated_tokens.#.input_layer": "updaters.#.input",
    "gated_tokens.#.update_gate": "updaters.#.gate",
    "gated_tokens.#.norm_in": "updaters.#.gate_norm",
    "gated_tokens.#.norm_out": "updaters.#.dynamic_norm",
    "gated_tokens.#.fc_layer": "updaters.#.output",
    "gated_tokens.#.fc_norm": "updaters.#.output_norm",
    "ghost_up_layers.#.layers.#.primary.conv": "ghosts.+.#.primary",
    "ghost_up_layers.#.layers.#.primary.bn": "ghosts.+.#.primary_norm",
    "ghost_up_layers.#.layers.#.cheap.conv": "ghosts.+.#.cheap",
    "ghost_up_layers.#.layers.#.cheap.bn": "ghosts.+.#.cheap_norm",
    "layer_slcts.#.primary.0": "reconstruct.#.intrinsic",
    "layer_slcts.#.primary.1": "reconstruct.#.intrinsic_norm",
    "layer_slcts.#.cheap.0": "reconstruct.#.diverse",
    "layer_slcts.#.cheap.1": "reconstruct.#.diverse_norm",
    "layer_slcts.#.layer_channel_slct.0": "reconstruct.#.gate_reduce",
    "layer_slcts.#.layer_channel_slct.2": "reconstruct.#.gate_expand",
    "layer_slcts.#.conv_out": "reconstruct.#.combine",
    "norms.#": "reconstruct.#.norm.norm",
}
SWIN_MODULES = {
    "patch_embed.projection": "patch_embed.projection",
    "patch_embed.norm": "patch_embed.norm",
    "stages.#.blocks.#.norm1": "stages.#.blocks.#.norm1",
    "stages.#.blocks.#.attn.w_msa": "stages.#.blocks.#.attn",  # only the table of biases is its own
    "stages.#.blocks.#.attn.w_msa.qkv": "stages.#.blocks.#.attn.qkv",
    "stages.#.blocks.#.attn.w_msa.proj": "stages.#.blocks.#.attn.proj",
    "stages.#.blocks.#.norm2": "stages.#.blocks.#.norm2",
    "stages.#.blocks.#.ffn.layers.0.0": "stages.#.blocks.#.mlp.fc1",
    "stages.#.blocks.#.ffn.layers.1": "stages.#.blocks.#.mlp.fc2",
    "stages.#.downsample.norm": "stages.#.downsample.norm",
    "stages.#.downsample.reduction": "stages.#.downsample.reduction",
    "norm#": "norm#",
}
VIT_MODULES = {
    "": "",  # pos_embed and cls_token
    "patch_embed.proj": "patch_embed.proj",
    "blocks.#.norm1": "blocks.#.norm1",
    "blocks.#.attn.qkv": "blocks.#.attn.qkv",
    "blocks.#.attn.proj": "blocks.#.attn.proj",
    "blocks.#.norm2": "blocks.#.norm2",
    "blocks.#.mlp.fc1": "blocks.#.mlp.fc1",
    "blocks.#.mlp.fc2": "blocks.#.mlp.fc2",
}
NORM_PARAMETERS = {
    "weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance",
}  # fmt: skip
IGNORED = ("relative_position_index", "num_batches_tracked")  # constants and counters of the released files


class Converted(NamedTuple):
    """Weights by our name, as in Segmentor; what was left out of the source on purpose; grid of its positions."""

    weights: dict[str, np.ndarray]
    dropped: tuple[str, ...]
    grid: tuple[int, int] | None


def convert(source: str, weights: dict[str, np.ndarray], *, class_token: bool = False) -> Converted:
    """Public weights by name -> ours in float32; class_token keeps the class token of a timm_vit file.

    Raises ValueError that lists every missing, unexpected, doubly mapped and misshapen name.
    """
    if source == "timm_vit":
        return convert_vit(weights, class_token)
    if source != "released_ecenet":
        raise ValueError(f"source {source!r} is not one of {', '.join(map(repr, SOURCES))}")
    if class_token:
        raise ValueError("class_token belongs to source timm_vit; the released ECENet has none")
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


def expected_parameters(prefix: str, network: nn.Cell) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters, running statistics included, by their name in a Segmentor."""
    return {f"{prefix}.{name}": tuple(p.shape) for name, p in network.parameters_and_names()}


def match(
    weights: dict[str, np.ndarray], rules: list[tuple[str, str, dict[str, str]]], expected: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Weights renamed by the rules (prefix there, prefix here, module table), if exactly the `expected` ones result."""
    unexpected, origins, misshapen, result = [], defaultdict(list), [], {}
    for name, value in weights.items():
        ours = rename(name, rules)
        if ours not in expected:
            unexpected.append(f"{name} (would be {ours})" if ours else name)
            continue
        origins[ours].append(name)
        shape = public_shape(ours, expected[ours])
        if value.shape == shape:
            result[ours] = np.ascontiguousarray(value, np.float32).reshape(expected[ours])
        else:
            misshapen.append(f"{name}: {value.shape}, need {shape} for {ours}")
    doubled = [f"{ours}: {', '.join(names)}" for ours, names in origins.items() if len(names) > 1]
    missing = [f"{name} {shape}" for name, shape in expected.items() if name not in origins]
    raise_problems({"missing": missing, "unexpected": unexpected, "doubly mapped": doubled, "wrong shape": misshapen})
    return result


def public_shape(ours: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape at the source of our parameter: two of our matrix products are convolutions there."""
    if ours == "backbone.patch_embed.proj.weight":
        return shape[0], 3, VIT_PATCH, VIT_PATCH
    return (*shape, 1, 1) if re.fullmatch(r"head\.attentions\.\d+\.proj\.weight", ours) else shape


def raise_problems(problems: dict[str, list[str]]) -> None:
    """Raises one ValueError with every problem, unless all lists are empty."""
    if any(problems.values()):
        lines = [f"{kind} ({len(names)}):\n  " + "\n  ".join(names) for kind, names in problems.items() if names]
        raise ValueError("the weights do not match the network, nothing was converted\n" + "\n".join(lines))


def rename(name: str, rules: list[tuple[str, str, dict[str, str]]]) -> str | None:
    """Our name of a public parameter; None when no rule is for it."""
    for theirs, ours, table in rules:
        if not name.startswith(theirs):
            continue
        module, _, parameter = name.removeprefix(theirs).rpartition(".")
        for pattern, target in table.items():
            found = re.fullmatch(re.escape(pattern).replace(r"\#", r"(\d+)"), module)
            if found:
                return ours + fill(target, found.groups(), parameter)
    return None


def fill(target: str, indices: tuple[str, ...], parameter: str) -> str:
    """`ghosts.+.#.cheap`, ("1", "0"), "weight" -> "ghosts.2.0.cheap.weight"."""
    numbers = iter(indices)
    module = re.sub("[#+]", lambda mark: str(int(next(numbers)) + (mark[0] == "+")), target)
    if "norm" in module.rsplit(".", 1)[-1]:
        parameter = NORM_PARAMETERS.get(parameter, parameter)
    return f"{module}.{parameter}" if module else parameter


def dimensions(weights: dict[str, np.ndarray], *names: str) -> list[tuple[int, ...]]:
    """Shapes of the named weights, which tell the sizes of a network.

    Raises ValueError that lists the names that are absent, or have fewer than two axes.
    """
    poor = [name for name in names if name not in weights or weights[name].ndim < 2]
    if poor:
        raise ValueError(
            f"cannot tell the sizes of the network: {', '.join(poor)} not in the file, or with fewer than two axes; "
            f"is this the right source ({', '.join(SOURCES)})?"
        )
    return [weights[name].shape for name in names]


def count(weights: dict[str, np.ndarray], pattern: str) -> int:
    """One more than the highest index in the group of `pattern` at the start of a name; 0 without any."""
    return max((int(found[1]) + 1 for name in weights if (found := re.match(pattern, name))), default=0)


def build(network: type, *args, **kwargs) -> nn.Cell:
    """A network without initial values; ValueError says when no network has the sizes that the file shows."""
    try:
        with no_init_parameters():
            return network(*args, **kwargs)
    except ValueError as error:
        raise ValueError(f"the shapes in the file belong to no network of this kind: {error}") from error


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
