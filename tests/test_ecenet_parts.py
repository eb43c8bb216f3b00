"""Parts of ECENet's head against float64 references written from the formulas of the specification."""

import numpy as np
import pytest
from mindspore import nn
from scipy.special import erf, expit, softmax

from src.models.heads.ecenet import ECENetHead
from src.models.heads.ecenet_parts import ClassEmbedding, MaskDescriptor, PyramidNeck, SemanticsAttention
from src.models.heads.fcn import FCNHead
from src.models.heads.feature_reconstruction import FeatureReconstruction
from src.models.layers import create_norm
from tests.running import draw, randomise, run


class Call(nn.Cell):
    """One method of a cell, with two inputs, as a graph of its own."""

    def __init__(self, cell: nn.Cell, method: str) -> None:
        super().__init__()
        self.cell, self.prior = cell, method == "prior"

    def construct(self, x, y):
        return self.cell.prior(x, y) if self.prior else self.cell.update(0, x, y)


def normalise(x, gamma, beta):
    """LayerNorm over the last axis."""
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def batch_norm(x, p, name):
    """Normalisation of (B, H, W, C) by the running statistics."""
    scale = p[f"{name}.gamma"] / np.sqrt(p[f"{name}.moving_variance"] + 1e-5)
    return (x - p[f"{name}.moving_mean"]) * scale + p[f"{name}.beta"]


def gelu(x):
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


def depthwise(x, weight, bias):
    """3x3 depthwise convolution of (B, H, W, C), weight (C, 1, 3, 3)."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    taps = [padded[:, i : i + height, j : j + width] * weight[:, 0, i, j] for i in range(3) for j in range(3)]
    return sum(taps) + bias


@pytest.mark.parametrize("sign, q_act", [("reversed", "none"), ("standard", "relu")])
def test_attention_equals_its_formula(sign, q_act):
    b, e, k, heads, height, width = 2, 8, 5, 2, 3, 4
    cell = SemanticsAttention(e, heads, attn_sign=sign, q_act=q_act)
    p = randomise(cell)
    x, embedding = draw(b, e, height, width), draw(b, k, e, seed=2)
    enhanced, mask = run(cell, x, embedding)

    pixels = x.astype(np.float64).transpose(0, 2, 3, 1)
    act = (lambda v: np.maximum(v, 0)) if q_act == "relu" else (lambda v: v)
    q = normalise(pixels, p["norm_pixel.gamma"], p["norm_pixel.beta"])
    q = act(depthwise(q, p["query_depthwise.weight"], p["query_depthwise.bias"]))
    q = act(q @ p["query_pointwise.weight"][:, :, 0, 0].T + p["query_pointwise.bias"])
    kv = normalise(embedding.astype(np.float64), p["norm_class.gamma"], p["norm_class.beta"]) @ p["key_value.weight"].T
    key, value = (half.reshape(b, k, heads, e // heads) for half in (kv[..., :e], kv[..., e:]))
    similarity = np.einsum("bnhd,bkhd->bhnk", q.reshape(b, -1, heads, e // heads), key) / np.sqrt(e // heads)
    weight = softmax(similarity.max(-1, keepdims=True) - similarity if sign == "reversed" else similarity, -1)
    read = np.einsum("bhnk,bkhd->bnhd", weight, value).reshape(b, height, width, e)
    z = pixels + read @ p["proj.weight"].T + p["proj.bias"]
    hidden = normalise(z, p["norm_mlp.gamma"], p["norm_mlp.beta"]) @ p["mlp_expand.weight"][:, :, 0, 0].T
    hidden = depthwise(hidden + p["mlp_expand.bias"], p["mlp_depthwise.weight"], p["mlp_depthwise.bias"])
    z = z + gelu(hidden) @ p["mlp_reduce.weight"][:, :, 0, 0].T + p["mlp_reduce.bias"]
    np.testing.assert_allclose(enhanced, z.transpose(0, 3, 1, 2), atol=2e-5)
    expected = similarity.mean(1).transpose(0, 2, 1).reshape(b, k, height, width)
    np.testing.assert_allclose(mask, expected, atol=1e-5)


@pytest.mark.parametrize("gate", ["linear", "sigmoid", "one_plus"])
def test_feature_reconstruction_equals_its_formula(gate):
    c, m = 8, 4
    cell = FeatureReconstruction(c, norm="batch", gate=gate)
    p = randomise(cell)
    x = draw(2, c, 3, 5)
    rebuilt, gated = run(cell, x)
    intrinsic = x.astype(np.float64).transpose(0, 2, 3, 1) @ p["intrinsic.weight"][:, :, 0, 0].T
    intrinsic = batch_norm(intrinsic, p, "intrinsic_norm")
    diverse = batch_norm(depthwise(intrinsic, p["diverse.weight"], p["diverse.bias"]), p, "diverse_norm")
    g = np.maximum(diverse.mean((1, 2)) @ p["gate_reduce.weight"].T, 0) @ p["gate_expand.weight"].T
    g = {"linear": g, "sigmoid": expit(g), "one_plus": 1 + g}[gate]
    diverse = diverse * g[:, None, None]
    assert gated.shape == (2, m, 3, 5)
    np.testing.assert_allclose(gated, diverse.transpose(0, 3, 1, 2), atol=1e-5)
    joined = np.concatenate([diverse, intrinsic], -1) @ p["combine.weight"][:, :, 0, 0].T
    expected = normalise(joined, p["norm.norm.gamma"], p["norm.norm.beta"])
    np.testing.assert_allclose(rebuilt, expected.transpose(0, 3, 1, 2), atol=2e-5)


@pytest.mark.parametrize("grid", [(7, 9), (3, 4)])  # the second is smaller than three of the pooling grids
def test_descriptor_is_adaptive_average_pooling(grid):
    sides = (1, 2, 3, 6, 5)
    mask = draw(2, 3, *grid)
    expected = []
    for n in sides:
        for i in range(n):
            for j in range(n):
                rows = slice(i * grid[0] // n, int(np.ceil((i + 1) * grid[0] / n)))
                columns = slice(j * grid[1] // n, int(np.ceil((j + 1) * grid[1] / n)))
                expected.append(mask[:, :, rows, columns].astype(np.float64).mean((2, 3)))
    descriptor = run(MaskDescriptor(grid, sides), mask)
    assert descriptor.shape == (2, 3, 75)
    np.testing.assert_allclose(descriptor, np.stack(expected, -1), atol=1e-6)


def test_pooled_feature_embedding_is_the_mean_under_the_mask():
    cell = ClassEmbedding((3, 4), 8, (1, 2, 3, 6, 5), "pooled_feature")
    p = randomise(cell)
    mask, feature = draw(2, 5, 3, 4), draw(2, 8, 3, 4, seed=2)
    weight = softmax(mask.astype(np.float64).reshape(2, 5, 12), -1)
    mean = np.einsum("bkn,bcn->bkc", weight, feature.reshape(2, 8, 12))
    np.testing.assert_allclose(run(cell, mask, feature), mean @ p["linear.weight"].T + p["linear.bias"], atol=1e-5)


def test_pyramid_neck_equals_its_formula():
    cell = PyramidNeck(4, "batch")
    p = randomise(cell)
    maps = tuple(draw(2, 4, 4, 6, seed=i) for i in range(4))

    def double(x, name):  # transposed 2x2 convolution of stride 2, weight (C in, C out, 2, 2)
        blocks = np.einsum("bcij,coyx->boiyjx", x, p[f"{name}.weight"])
        return blocks.reshape(x.shape[0], 4, 2 * x.shape[2], 2 * x.shape[3]) + p[f"{name}.bias"][:, None, None]

    first = batch_norm(double(maps[0], "up4_first").transpose(0, 2, 3, 1), p, "up4_norm").transpose(0, 3, 1, 2)
    halved = maps[3].reshape(2, 4, 2, 2, 3, 2).max((3, 5))
    expected = double(gelu(first), "up4_second"), double(maps[1], "up2"), maps[2], halved
    for actual, wanted in zip(run(cell, maps), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=2e-5)


@pytest.mark.parametrize("form", ["diag", "full"])
def test_prior_weighs_masks_by_confidence(form):
    head = ECENetHead((8, 8), ((3, 4),) * 2, 5, channels=8, num_heads=2, mask_prior=form)
    p = randomise(head)
    embedding, mask = draw(2, 5, 8), draw(2, 5, 3, 4, seed=2)
    confidence = softmax(embedding.astype(np.float64) @ p["confidence.weight"].T + p["confidence.bias"], -1)
    full = np.einsum("bqc,bqij->bqcij", confidence, expit(mask.astype(np.float64)))  # q embedding, c class
    expected = np.diagonal(full, axis1=1, axis2=2).transpose(0, 3, 1, 2) if form == "diag" else full.sum(1)
    np.testing.assert_allclose(run(Call(head, "prior"), embedding, mask), expected, atol=1e-6)


@pytest.mark.parametrize("updater", ["gated", "replace", "add"])
def test_update_of_the_embeddings(updater):
    head = ECENetHead((8, 8), ((3, 4),) * 2, 5, channels=8, num_heads=2, updater=updater)
    p = {name.removeprefix("updaters.0."): value for name, value in randomise(head).items()}
    old, new = draw(2, 5, 8), draw(2, 5, 8, seed=2)
    expected = {"replace": new, "add": old + new}.get(updater)
    if updater == "gated":
        a, b = np.split(new @ p["dynamic.weight"].T + p["dynamic.bias"], 2, -1)
        gate = ((old @ p["input.weight"].T + p["input.bias"]) * a) @ p["gate.weight"].T + p["gate.bias"]
        gate = expit(normalise(gate, p["gate_norm.gamma"], p["gate_norm.beta"]))
        mixed = gate * normalise(b, p["dynamic_norm.gamma"], p["dynamic_norm.beta"]) + old
        mixed = mixed @ p["output.weight"].T + p["output.bias"]
        expected = np.maximum(normalise(mixed, p["output_norm.gamma"], p["output_norm.beta"]), 0)
    np.testing.assert_allclose(run(Call(head, "update"), old, new), expected, atol=1e-5)


@pytest.mark.parametrize("channels, groups", [(48, 16), (64, 32), (20, 4)])
def test_group_norm_has_as_many_groups_as_divide_the_channels(channels, groups):
    assert create_norm("group", channels).num_groups == groups


def test_starts_of_linear_layers():
    heads = {
        name: ECENetHead((64, 64), ((3, 4),) * 2, 20, channels=64, init_linear=name) for name in ("fanin", "trunc02")
    }
    for name, head in heads.items():
        weight, bias = head.updaters[0].dynamic.weight.asnumpy(), head.updaters[0].dynamic.bias.asnumpy()
        if name == "fanin":  # uniform up to 1 / sqrt(64), weights and biases
            assert 0.12 < np.abs(weight).max() <= 0.125 and 0.1 < np.abs(bias).max() <= 0.125
        else:
            assert 0.019 < weight.std() < 0.021 and not bias.any()  # the cut, at 2, is far outside


@pytest.mark.parametrize("head", [ECENetHead, FCNHead])
def test_starts_of_the_pixel_classifier(head):
    size = ((64,) * 2, ((3, 4),) * 2, 20)
    released, wider = (head(*size, channels=64, init_classifier=name).classifier for name in ("normal001", "fanin"))
    assert 0.009 < released.weight.asnumpy().std() < 0.011 and not released.bias.asnumpy().any()
    inputs = wider.weight.shape[1]
    for values in (wider.weight.asnumpy(), wider.bias.asnumpy()):
        assert 0.8 / np.sqrt(inputs) < np.abs(values).max() <= 1.0 / np.sqrt(inputs)
    with pytest.raises(ValueError, match="init_classifier 'zero' is not known; allowed: fanin, normal001"):
        head(*size, channels=64, init_classifier="zero")
