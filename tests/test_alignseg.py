"""The AlignSeg head: cases T10 to T12 of the spec, values against NumPy, switches, start, noise."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.models.backbones.resnet import ResNet
from src.models.heads.alignseg import AlignSegHead
from src.models.heads.alignseg_parts import AlignedContext, AlignedSum, Offsets, PixelClassifier, Refinement
from src.models.heads.sampler import Sampler
from src.models.segmentor import Segmentor
from tests.network_reference import convolve, normalise, relu, resize_corners, sample
from tests.running import draw, randomise, run

SLOPE = 0.01
GRIDS = ((9, 13), (5, 7), (3, 4), (2, 2))


def activate(x, p, name):
    return relu(normalise(x, p, name), SLOPE)


def refine(x, p, name=""):
    x = convolve(x, p[f"{name}unify.weight"])
    hidden = activate(convolve(x, p[f"{name}conv1.weight"]), p, f"{name}norm1")
    return activate(x + convolve(hidden, p[f"{name}conv2.weight"]), p, f"{name}norm2")


def offset_of(x, p, name):
    hidden = activate(convolve(x, p[f"{name}.reduce.weight"]), p, f"{name}.norm")
    return convolve(hidden, p[f"{name}.offset.weight"])


def moved(x, offset):
    """The sampler in mode standard (spec section 4.1) at maps of more than one pixel."""
    (height, width), shape = x.shape[2:], offset.shape[2:]
    i, j = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    return sample(
        x, (j + offset[:, 0]) * (width - 1) / (shape[1] - 1), (i + offset[:, 1]) * (height - 1) / (shape[0] - 1)
    )


def branch(x, p, name):
    x = activate(convolve(x, p[f"{name}.conv1.weight"]), p, f"{name}.norm1")
    return activate(convolve(x, p[f"{name}.conv2.weight"]), p, f"{name}.norm2")


def pool3(x):
    """Bins floor(i n / 3) .. ceil((i + 1) n / 3) of both axes (spec section 3.3)."""
    y = np.empty((*x.shape[:2], 3, 3))
    (height, width) = x.shape[2:]
    for i in range(3):
        for j in range(3):
            rows = slice(i * height // 3, -(-(i + 1) * height // 3))
            columns = slice(j * width // 3, -(-(j + 1) * width // 3))
            y[:, :, i, j] = x[:, :, rows, columns].mean((2, 3))
    return y


def test_refinement_equals_its_formula():
    cell = Refinement(6, 8, "batch", SLOPE)
    p, x = randomise(cell), draw(2, 6, 5, 7)
    np.testing.assert_allclose(run(cell, x), refine(x, p), rtol=1e-4, atol=1e-4)


def test_aligned_sum_equals_its_formula():
    cell = AlignedSum(4, True, True, Sampler(), "batch", SLOPE)
    p, acc, deep = randomise(cell), draw(2, 4, 6, 9), draw(2, 4, 3, 5, seed=1)
    up = resize_corners(deep, (6, 9))
    joined = np.concatenate([acc, up], 1)
    wanted = moved(up, offset_of(joined, p, "offset_up")) + moved(acc, offset_of(joined, p, "offset_acc"))
    assert np.abs(offset_of(joined, p, "offset_up")).max() > 1.0
    np.testing.assert_allclose(run(cell, acc, deep), wanted, atol=2e-3)


def test_aligned_context_equals_its_formula():
    cell = AlignedContext(6, 4, 3, True, Sampler(), "batch", SLOPE)
    p, x = randomise(cell), draw(2, 6, 5, 7)
    pooled, local = branch(pool3(x), p, "pooled"), branch(x, p, "local")
    joined = np.concatenate([local, resize_corners(pooled, (5, 7))], 1)
    wanted = moved(pooled, offset_of(joined, p, "offset")) + local
    np.testing.assert_allclose(run(cell, x), wanted, atol=1e-3 * np.abs(wanted).max())


def test_t10_fresh_aligned_sum_adds():
    cell = AlignedSum(256, True, True, Sampler(), "batch", SLOPE).set_train(False)
    acc, deep = draw(1, 256, 17, 17), draw(1, 256, 9, 9, seed=1)
    np.testing.assert_allclose(run(cell, acc, deep), acc + resize_corners(deep, (17, 17)), atol=1e-5)


def test_t11_fresh_aligned_context_adds():
    cell = AlignedContext(2048, 256, 3, True, Sampler(), "batch", SLOPE).set_train(False)
    x = draw(1, 2048, 5, 6)
    plain = AlignedContext(2048, 256, 3, False, Sampler(), "batch", SLOPE).set_train(False)
    ms.load_param_into_net(plain, cell.parameters_dict())
    found, wanted = run(cell, x), run(plain, x)
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def head_of(channels=8, in_channels=(4, 5, 6, 7), grids=GRIDS, **options) -> AlignSegHead:
    return AlignSegHead(in_channels, grids, 5, channels=channels, norm=options.pop("norm", "batch"), **options)


def run_both(head, *inputs):
    """Outputs with running statistics, the auxiliary ones, which only training has, among them."""
    head.add_flags(training=True)  # of the head alone, not of its norms
    return run(head, *inputs)


def maps(channels=(4, 5, 6, 7), grids=GRIDS) -> tuple[np.ndarray, ...]:
    return tuple(draw(2, c, *grid, seed=i) for i, (c, grid) in enumerate(zip(channels, grids, strict=True)))


def test_head_equals_its_formula():
    head = head_of()
    p, features = randomise(head), maps()
    # Of sizes that keep maps and offsets small: rounding moves places, and grows with offsets and slopes.
    p |= {name: value / np.sqrt(value[0].size) for name, value in p.items() if value.ndim == 4}
    for name, parameter in head.parameters_and_names():
        parameter.set_data(Tensor(p[name].astype(np.float32)))
    outputs = run_both(head, features)

    def fuse(i, acc, deep):
        up = resize_corners(deep, GRIDS[0])
        joined = np.concatenate([acc, up], 1)
        up = moved(up, offset_of(joined, p, f"sums.{i}.offset_up"))
        return refine(up + moved(acc, offset_of(joined, p, f"sums.{i}.offset_acc")), p, f"smooths.{i}.")

    def classify(x, name):
        hidden = activate(convolve(x, p[f"{name}.conv.weight"], bias=p[f"{name}.conv.bias"]), p, f"{name}.norm")
        return convolve(hidden, p[f"{name}.classifier.weight"], bias=p[f"{name}.classifier.bias"])

    laterals = [refine(x, p, f"laterals.{s}.") for s, x in enumerate(features)]
    a2 = fuse(0, laterals[0], laterals[1])
    a3 = fuse(1, a2, laterals[2])
    a4 = fuse(2, a3, laterals[3])
    pooled, local = branch(pool3(features[3]), p, "context.pooled"), branch(features[3], p, "context.local")
    joined = np.concatenate([local, resize_corners(pooled, GRIDS[3])], 1)
    context = moved(pooled, offset_of(joined, p, "context.offset")) + local
    wanted = {"logits": classify(fuse(3, a4, refine(context, p, "laterals.4.")), "main"),
              "auxiliary": classify(a3, "auxiliary")}  # fmt: skip
    assert outputs.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(outputs[name], value, atol=1e-3 * np.abs(value).max())


@pytest.mark.parametrize(("size", "grid"), [((64, 64), (17, 17)), ((128, 96), (33, 25)), ((33, 65), (9, 17))])
def test_t12_output_sizes(size, grid):
    backbone = ResNet(size, depths=(1, 1, 1, 1), bottleneck=False)
    head = AlignSegHead(backbone.channels, backbone.grids, 19, channels=8)
    assert head.grids[0] == grid
    if size != (33, 65):
        return  # one size runs
    network = Segmentor(backbone, head, (120.0,) * 3, (60.0,) * 3).set_train(False)
    head.add_flags(training=True)
    outputs = run(network, draw(1, 3, *size))
    assert {name: value.shape for name, value in outputs.items()} == dict.fromkeys(outputs, (1, 19, 9, 17))
    assert all(np.isfinite(value).all() for value in outputs.values()) and len(outputs) == 2


SWITCHES = {
    "plain": {"align_up": False, "align_acc": False, "context": "gap", "act_slope": 0.0},
    "one-sided": {"align_acc": False, "context": "pool3_noalign", "sampler_padding": "border"},
    "legacy": {"sampler": "legacy", "sampler_align_corners": False, "pool_size": 2, "norm": "group"},
    "no auxiliary": {"auxiliary": False},
}


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_build_and_run(name):
    head = head_of(**SWITCHES[name])
    randomise(head)
    outputs = run_both(head, maps(), np.full((2, len(head.noise_rates)), 1.25, np.float32))
    assert tuple(outputs) == head.outputs == (("logits",) if name == "no auxiliary" else ("logits", "auxiliary"))
    for value in outputs.values():
        assert value.shape == (2, 5, *GRIDS[0])
        assert np.isfinite(value).all() and np.abs(value[0] - value[1]).max() > 1e-3
    names = {p.name for p in head.get_parameters()}
    assert ("sums.0.offset_acc.reduce.weight" in names) == (name in ("legacy", "no auxiliary"))
    assert ("context.offset.reduce.weight" in names) == (name in ("legacy", "no auxiliary"))


@pytest.mark.parametrize("grids", [((4, 6),) * 3, ((4, 6),), ((1, 1), (1, 1))])
def test_any_number_of_levels_of_any_grid(grids):
    channels = (4, 5, 6)[: len(grids)]
    head = head_of(in_channels=channels, grids=grids)
    randomise(head)
    for value in run_both(head, maps(channels, grids)).values():
        assert value.shape == (2, 5, *grids[0]) and np.isfinite(value).all()


def test_start_of_the_specification():
    head = head_of(channels=32)
    for _, cell in head.cells_and_names():
        if isinstance(cell, Offsets):
            assert not cell.offset.weight.asnumpy().any()
        if isinstance(cell, Refinement | PixelClassifier):
            convolution = cell.conv2 if isinstance(cell, Refinement) else cell.conv
            weight = convolution.weight.asnumpy()
            bound = 1.0 / np.sqrt(weight[0].size)
            assert 0.9 * bound < np.abs(weight).max() <= bound and abs(weight.mean()) < 0.1 * bound
    bias = head.main.conv.bias.asnumpy()
    assert 0.5 / np.sqrt(9 * 32) < np.abs(bias).max() <= 1.0 / np.sqrt(9 * 32)


def test_noise_drops_channels_before_each_classifier():
    head = head_of(dropout=0.25)
    p, noise = randomise(head), np.ones((2, 16), np.float32)
    np.testing.assert_array_equal(head.noise_rates, np.full(16, 0.25, np.float32))
    noise[0, :8] = 0.0
    noise[1, 8:] = 0.0
    plain, dropped = (run_both(head, maps(), each) for each in (np.ones_like(noise), noise))
    for name, cell, gone in (("logits", "main", 0), ("auxiliary", "auxiliary", 1)):
        bias = np.broadcast_to(p[f"{cell}.classifier.bias"][:, None, None], (5, *GRIDS[0]))
        np.testing.assert_allclose(dropped[name][gone], bias, atol=1e-5)
        np.testing.assert_allclose(dropped[name][1 - gone], plain[name][1 - gone], atol=1e-5)


@pytest.mark.parametrize(("options", "message"), [
    ({"context": "psp"}, "context 'psp' is not known; allowed: aligncm, pool3_noalign, gap"),
    ({"sampler": "new"}, "sampler 'new' is not known"),
    ({"channels": 6}, "channels is 6; give a multiple of 4"),
    ({"pool_size": 0}, "pool_size is 0"),
    ({"act_slope": 1.5}, "act_slope is 1.5"),
])  # fmt: skip
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        head_of(**options)
