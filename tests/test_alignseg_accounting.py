"""Parameters and multiply-accumulates of AlignSeg: case T13 and the tables of the spec, sections 9.1 to 9.3."""

import pytest
from mindspore.nn.utils import no_init_parameters

from src.models.backbones.resnet import resnet_50, resnet_101
from src.models.heads.alignseg import AlignSegHead

R50, R101 = resnet_50, resnet_101
ROUNDING = 0.06  # of tables with one decimal, some of whose entries are sums of rounded ones


def build(builder, side, classes: int, stem: str = "deep128", **options) -> tuple:
    """Backbone and head without initial values."""
    with no_init_parameters():
        backbone = builder(side if isinstance(side, tuple) else (side, side), stem=stem)
        return backbone, AlignSegHead(backbone.channels, backbone.grids, classes, **options)


def parameters(*cells) -> int:
    return sum(p.size for cell in cells for p in cell.trainable_params())


def statistics(*cells) -> int:
    return sum(p.size for cell in cells for p in cell.get_parameters() if p.name.endswith(("_mean", "_variance")))


@pytest.mark.parametrize(("builder", "classes", "train", "inference", "tensors", "running"), [
    (R50, 19, 47_854_182, 47_258_707, 288, 74_112), (R50, 150, 47_921_516, 47_292_374, 288, 74_112),
    (R101, 19, 66_846_310, 66_250_835, 441, 126_336), (R101, 150, 66_913_644, 66_284_502, 441, 126_336),
])  # fmt: skip
def test_t13_parameters(builder, classes, train, inference, tensors, running):
    network = build(builder, 64, classes)
    assert parameters(*network) == train
    assert parameters(*build(builder, 64, classes, auxiliary=False)) == inference
    assert sum(len(cell.trainable_params()) for cell in network) == tensors
    assert statistics(*network) == running
    assert parameters(*build(builder, 64, classes, stem="plain7x7")) == train - 123_776


def test_parameters_of_the_parts():
    _, head = build(R101, 64, 19)
    assert [parameters(cell) for cell in head.laterals] == [361_088, 426_624, 557_696, 819_840, 361_088]
    assert [parameters(cell) for cell in head.smooths] == [361_088] * 4
    assert [parameters(cell) for cell in head.sums] == [272_384] * 4
    assert parameters(head.context) == 17_971_200
    assert parameters(head.main) == parameters(head.auxiliary) == 595_475


PLAIN = {"align_up": False, "align_acc": False}


@pytest.mark.parametrize(("options", "small", "large"), [
    ({**PLAIN, "context": "gap"}, 29_318_246, 48_310_374),
    ({"context": "gap"}, 30_407_782, 49_399_910),
    (PLAIN, 46_764_646, 65_756_774),
    ({"context": "pool3_noalign"}, 47_717_990, 66_710_118),
    ({"align_acc": False}, 47_309_414, 66_301_542),
])  # fmt: skip
def test_parameters_of_the_ablations(options, small, large):
    assert parameters(*build(R50, 64, 19, **options)) == small
    assert parameters(*build(R101, 64, 19, **options)) == large


def billions(network: tuple) -> float:
    return sum(cell.count_macs() for cell in network) / 1e9


@pytest.mark.parametrize(("builder", "side", "classes", "inference", "train"), [
    (R50, 512, 19, 93.0, 102.9), (R50, 769, 19, 207.4, 229.5), (R50, 872, 19, 265.8, 294.4),
    (R50, 1024, 19, 366.8, 406.1), (R50, (1024, 2048), 19, 731.0, 809.4),
    (R101, 512, 19, 113.7, 123.6), (R101, 769, 19, 252.9, 275.0), (R101, 872, 19, 323.1, 351.7),
    (R101, 1024, 19, 446.8, 486.1), (R101, (1024, 2048), 19, 889.8, 968.2),
    (R50, 512, 150, 93.6, 104.0), (R101, 512, 150, 114.2, 124.7),
])  # fmt: skip
def test_operations_of_the_specification(builder, side, classes, inference, train):
    assert billions(build(builder, side, classes)) == pytest.approx(train, abs=ROUNDING)
    assert billions(build(builder, side, classes, auxiliary=False)) == pytest.approx(inference, abs=ROUNDING)


def test_operations_of_the_parts():
    _, head = build(R50, 1024, 19)
    finest, coarsest = 257 * 257, 33 * 33
    assert head.smooths[0].count_macs(finest) / 1e9 == pytest.approx(23.8, abs=ROUNDING)
    assert head.sums[0].count_macs(finest) / 1e9 == pytest.approx(17.9, abs=ROUNDING)
    assert head.main.count_macs(finest) / 1e9 == pytest.approx(39.3, abs=ROUNDING)
    assert head.context.count_macs(coarsest) / 1e9 == pytest.approx(9.9, abs=ROUNDING)
