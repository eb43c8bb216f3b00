"""Public weights to ours, one name to one name: which conversion a source takes, the released ECENet, other sizes.

Letters: D and E widths, K classes, L side of the largest pooling grid.
"""

import math

import numpy as np

from src.models.conversion_convolutional import convert_alignseg, convert_mobilenet, convert_resnet
from src.models.conversion_matching import Converted, build, count, dimensions, expected_parameters, match
from src.models.conversion_names import HEAD_MODULES, IGNORED, SOURCES, SWIN_MODULES, SWINS, VIT_EXTRAS
from src.models.conversion_text import convert_text
from src.models.conversion_transformers import build_swin, convert_swin, convert_vit
from src.models.heads.ecenet import ECENetHead
from src.models.heads.ecenet_parts import POOL_GRIDS
from src.models.resizing import BIAS_TABLE, resize_bias_table, resize_position_embedding

POSITIONS = "backbone.pos_embed"


def convert(
    source: str, weights: dict[str, np.ndarray], *, class_token: bool = False, least: float = 1.0
) -> Converted:
    """Public weights by name -> ours in float32.

    class_token: keep the class token of a Vision Transformer. least: share of our network's numbers that the file must
    give; below 1 the rest may be missing, and names that are not ours are left out, all of them listed in the result.
    Raises ValueError that lists every missing, unexpected, doubly mapped and misshapen name.
    """
    if source not in SOURCES:
        raise ValueError(f"source {source!r} is not one of {', '.join(map(repr, SOURCES))}")
    if not 0 < least <= 1:
        raise ValueError(f"the least share is {least}; give a number above 0, up to 1")
    if source in VIT_EXTRAS:
        return convert_vit(source, weights, class_token, least)
    if class_token:
        raise ValueError(f"class_token belongs to sources {', '.join(VIT_EXTRAS)}; {source} has none")
    if source in SWINS:
        return convert_swin(source, weights, least)
    if source == "alignseg":
        return convert_alignseg(weights, least)
    if source == "mobilenet_v2":
        return convert_mobilenet(weights, least)
    if source == "clip_text":
        return convert_text(weights, least)
    if source == "released_ecenet":
        return convert_ecenet(weights, least)
    return convert_resnet(weights, source == "resnet_bgr", least)


def convert_ecenet(weights: dict[str, np.ndarray], least: float) -> Converted:
    """The released ECENet, its head alone or with its Swin."""
    dropped = tuple(name for name in weights if name.rsplit(".", 1)[-1] in IGNORED)
    kept = {name: value for name, value in weights.items() if name not in dropped}
    prefixed = any(name.startswith(("backbone.", "decode_head.")) for name in kept)
    head = {name.removeprefix("decode_head."): value for name, value in kept.items() if name.startswith("decode_head.")}
    expected = expected_parameters("head", build_head(head if prefixed else kept))
    rules = [("decode_head." if prefixed else "", "head.", HEAD_MODULES)]
    swin = {name.removeprefix("backbone."): value for name, value in kept.items() if name.startswith("backbone.")}
    if swin:
        expected |= expected_parameters("backbone", build_swin(swin, "mm_swin"))
        rules.append(("backbone.", "backbone.", SWIN_MODULES))
    return match(kept, rules, expected, least)._replace(dropped=dropped)


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


def resize(converted: Converted, grid: tuple[int, int] | None, window: int | None) -> Converted:
    """Position embeddings for a grid of patches (h, w), tables of biases for a side of the windows, both bicubic.

    Raises ValueError where a size is asked for that these weights do not have.
    """
    weights = dict(converted.weights)
    if grid:
        if converted.grid is None or POSITIONS not in weights:
            raise ValueError("a grid was given, but these weights have no position embeddings")
        weights[POSITIONS] = resize_position_embedding(weights[POSITIONS], converted.grid, grid)
    if window:
        tables = [name for name in weights if name.endswith(BIAS_TABLE)]
        if not tables:
            raise ValueError("a window was given, but these weights have no tables of biases by relative position")
        for name in tables:
            weights[name] = resize_bias_table(weights[name], window)
    return converted._replace(weights=weights, grid=grid or converted.grid)
