"""Public weights of convolutional networks to ours: MobileNetV2, ResNet, the released AlignSeg.

Images come in RGB here. Weights that read BGR get the input channels of their first convolution swapped.
"""

import re

import numpy as np

from src.models.backbones.mobilenet_v2 import MobileNetV2
from src.models.backbones.resnet import ResNet
from src.models.conversion_matching import Converted, build, count, dimensions, expected_parameters, match
from src.models.conversion_names import (
    ALIGNSEG_MODULES,
    DEEP_STEM_MODULES,
    IGNORED,
    MOBILENET_MODULES,
    PLAIN_STEM_MODULES,
    RESNET_MODULES,
)
from src.models.heads.alignseg import AlignSegHead

FIRST = "backbone.stem.0.conv.weight"
ABN_EPSILON = 1e-5


def convert_mobilenet(weights: dict[str, np.ndarray], least: float) -> Converted:
    """MobileNetV2 1.0 with norms folded into biases, without its last convolution and classifier."""
    dropped = tuple(name for name in weights if name.startswith(("features.18.", "classifier.")))
    kept = {name: value for name, value in weights.items() if name not in dropped}
    expected = expected_parameters("backbone", build(MobileNetV2, (32, 32)))
    return match(kept, [("", "backbone.", MOBILENET_MODULES)], expected, least)._replace(dropped=dropped)


def convert_resnet(weights: dict[str, np.ndarray], bgr: bool, least: float) -> Converted:
    """A ResNet without its classifier; bgr: it reads images in the order B, G, R."""
    dropped = tuple(name for name in weights if name.startswith("fc.") or name.endswith(IGNORED))
    kept = {name: value for name, value in weights.items() if name not in dropped}
    network, rule = resnet_of(kept)
    result = match(kept, [rule], expected_parameters("backbone", network), least)._replace(dropped=dropped)
    return swap_channels(result) if bgr else result


def convert_alignseg(weights: dict[str, np.ndarray], least: float) -> Converted:
    """The released AlignSeg, its names flat or under `model.` or `module.`.

    Its norms scale by |gamma| + epsilon, which becomes gamma (spec section 2.2). It reads BGR.
    """
    plain = {re.sub(r"^(model\.|module\.)+", "", name): value for name, value in weights.items()}
    dropped = tuple(name for name in plain if name.startswith("fc.") or name.endswith(IGNORED))
    kept = {name: value for name, value in plain.items() if name not in dropped}
    network, rule = resnet_of(kept)
    width, *_ = dimensions(kept, "RRB1a.unify.weight")[0]
    classes = dimensions(kept, "head.3.weight")[0][0]
    head = build(AlignSegHead, network.channels, network.grids, classes, channels=width)
    expected = expected_parameters("backbone", network) | expected_parameters("head", head)
    result = match(kept, [rule, ("", "head.", ALIGNSEG_MODULES)], expected, least)
    for name in result.weights:
        if name.endswith(".gamma"):
            result.weights[name] = np.abs(result.weights[name]) + np.float32(ABN_EPSILON)
    return swap_channels(result._replace(dropped=dropped))


def resnet_of(weights: dict[str, np.ndarray]) -> tuple[ResNet, tuple[str, str, dict[str, str]]]:
    """The ResNet of the sizes that its weights show, without initial values, and the rule for its names."""
    depths = tuple(count(weights, rf"layer{i}\.(\d+)\.") for i in range(1, 5))
    deep = "conv3.weight" in weights
    network = build(
        ResNet, (32, 32), depths=depths, bottleneck="layer1.0.conv3.weight" in weights,
        stem="deep128" if deep else "plain7x7",
    )  # fmt: skip
    return network, ("", "backbone.", {**(DEEP_STEM_MODULES if deep else PLAIN_STEM_MODULES), **RESNET_MODULES})


def swap_channels(result: Converted) -> Converted:
    """The weights with the input channels of the first convolution, where it is there, in reverse order."""
    if FIRST not in result.weights:
        return result
    weights = {**result.weights, FIRST: np.ascontiguousarray(result.weights[FIRST][:, ::-1])}
    return result._replace(weights=weights, rearranged=(*result.rearranged, FIRST))
