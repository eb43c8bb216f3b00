"""SegViT's head: forward and gradients against float64, parameter and operation counts, sizes, errors."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from mindspore.nn.utils import no_init_parameters

from src import functional
from src.losses import check_outputs, create_loss
from src.models.backbones.swin import swin_tiny
from src.models.backbones.vit import vit_base, vit_large, vit_tiny
from src.models.heads.segvit import SegViTHead
from tests.class_tokens_reference import token_reference
from tests.running import draw, randomise, run
from tests.segvit_reference import segvit_reference

K, E, HEADS, LAYERS = 3, 8, 2, 2
EQUAL, FALLING = ((3, 4), (3, 4)), ((5, 7), (3, 4))
CHANNELS = (6, 10)
SIZES = {"channels": E, "num_heads": HEADS, "num_layers": LAYERS}


def build(grids, **options) -> tuple[SegViTHead, dict[str, np.ndarray], tuple[np.ndarray, ...]]:
    """A head with random weights, these weights in float64, and features of two images."""
    head = SegViTHead(CHANNELS, grids, K, **{**SIZES, **options})
    features = tuple(draw(2, c, *grid, seed=c) for c, grid in zip(CHANNELS, grids, strict=True))
    return head, randomise(head), features


def draw_keep(rates: np.ndarray) -> np.ndarray:
    """Keep factors of two images."""
    keep = np.random.default_rng(5).random((2, len(rates))) >= rates
    return (keep / (1.0 - rates)).astype(np.float32)


@pytest.mark.parametrize(("grids", "stride", "cpu"), [(EQUAL, 16, True), (FALLING, 4, False)], ids=["cpu", "plain"])
def test_outputs_equal_the_reference(grids, stride, cpu, monkeypatch):
    monkeypatch.setattr(functional, "on_cpu", lambda: cpu)
    head, p, features = build(grids)
    outputs, size = run(head, features), tuple(stride * side for side in grids[0])
    logits, scores, masks = segvit_reference(p, features, HEADS, LAYERS, size)
    assert tuple(outputs) == head.outputs
    assert outputs["logits"].shape == (2, K, *size) and np.ptp(logits, axis=(2, 3)).min() > 1e-3
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-5)
    for i in range(2):
        np.testing.assert_allclose(outputs["class_scores"][i], scores[i], atol=2e-5)
        np.testing.assert_allclose(outputs["token_masks"][i], masks[i], atol=2e-5)
    assert np.abs(masks[0] - masks[1]).max() > 0.1


class Training(nn.Cell):
    """Loss of the head's outputs, summed terms, and its gradients by parameter."""

    def __init__(self, head: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.head, self.loss = head, create_loss({"name": "class_tokens"}, K)
        self.differentiate = ops.value_and_grad(self.total, None, ms.ParameterTuple(head.trainable_params()))

    def total(self, first, second, noise, label, present, counts):
        terms = self.loss(self.head((first, second), noise), {"label": label, "present": present}, counts)
        return terms[0] + terms[1] + terms[2]

    def construct(self, first, second, noise, label, present, counts):
        return self.differentiate(first, second, noise, label, present, counts)


@pytest.mark.parametrize("rates", [(0.3, 0.2), pytest.param((0.3, 0.0), marks=pytest.mark.slow)], ids=str)
def test_gradients_are_slopes_of_the_reference(rates):
    head, p, features = build(FALLING, dropout=rates[0], attention_dropout=rates[1])
    label = np.random.default_rng(2).integers(0, 2, (2, 10, 14)).astype(np.int32)  # class 2 is absent
    label[0, :3] = 255
    counts, noise = np.array([200.0, 4.0, 2.0], np.float32), draw_keep(head.noise_rates)
    present = np.array([[0, 1, -1]] * 2, np.int32)
    total, gradients = Training(head)(*map(Tensor, (*features, noise, label, present, counts)))
    if not rates[1]:  # the columns of a softmax that keeps everything do not exist
        noise = fill_in(noise)

    def loss(weights: dict) -> float:
        _, scores, masks = segvit_reference(weights, features, HEADS, LAYERS, (1, 1), noise)
        return sum(token_reference(scores, masks, label, counts).values())

    assert float(total.asnumpy()) == pytest.approx(loss(p), rel=1e-5)
    random, step, unreached = np.random.default_rng(3), 1e-6, set()
    for parameter, gradient in zip(head.trainable_params(), gradients, strict=True):
        name, gradient = parameter.name, gradient.asnumpy().astype(np.float64)
        length = np.linalg.norm(gradient)
        direction = random.standard_normal(gradient.shape) + gradient / max(length, 1e-6)
        sides = [loss({**p, name: p[name] + sign * step * direction}) for sign in (1.0, -1.0)]
        slope = (sides[0] - sides[1]) / (2.0 * step)
        assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-3, abs=1e-3 * length + 1e-5), name
        if length < 1e-5:
            unreached.add(name)
    # A constant added to all scores of a softmax changes nothing: key biases count where the similarity is a mask only.
    assert unreached == {f"layers.{i}.self_attention.key.bias" for i in range(4)} | {
        f"layers.{i}.cross_attention.key.bias" for i in (0, 2)
    }


def fill_in(noise: np.ndarray) -> np.ndarray:
    """Noise without columns for the softmax -> noise with factors of 1 there."""
    parts, at = [], 0
    for positions in (35, 35, 12, 12):
        for size, dropped in ((HEADS * K * K, 0), (K * E, 1), (HEADS * K * positions, 0), (K * E * 6, 1)):
            parts.append(noise[:, at : at + size] if dropped else np.ones((2, size), np.float32))
            at += size * dropped
    assert at == noise.shape[1]
    return np.concatenate(parts, 1)


def test_noise_columns_and_rates():
    head, _, _ = build(FALLING, dropout=0.25, attention_dropout=0.125)
    attention = sum(LAYERS * HEADS * K * (K + n) for n in (35, 12))
    assert (head.noise_rates == 0.125).sum() == attention
    assert (head.noise_rates == 0.25).sum() == 2 * LAYERS * 7 * K * E == len(head.noise_rates) - attention


def test_head_without_dropout_runs_with_noise():
    head, p, features = build(EQUAL, dropout=0.0, attention_dropout=0.0)
    outputs = run(head, features, draw_keep(head.noise_rates))
    np.testing.assert_allclose(
        outputs["logits"], segvit_reference(p, features, HEADS, LAYERS, (48, 64))[0], atol=1e-5
    )


def test_odd_sizes_of_swin():
    with no_init_parameters():
        backbone = swin_tiny((197, 267))
    head = SegViTHead(backbone.channels, backbone.grids, K, **{**SIZES, "num_layers": 1})
    randomise(head)
    outputs = run(head, tuple(draw(1, c, *grid) for c, grid in zip(backbone.channels, backbone.grids, strict=True)))
    assert backbone.grids == ((50, 67), (25, 34), (13, 17), (7, 9))
    assert [m.shape for m in outputs["token_masks"]] == [(1, K, 50, 67)] * 4
    assert outputs["logits"].shape == (1, K, 200, 268) and np.isfinite(outputs["logits"]).all()


def formula(classes: int, width: int, channels: int, levels: int = 3, layers: int = 3) -> int:
    """Parameters by the specification."""
    c, e, k = channels, width, classes
    layer = 4 * e**2 + 4 * e + 4 * e**2 + 4 * e + 8 * e**2 + 5 * e + 6 * e
    return levels * (c * e + e + 2 * e) + levels * layers * layer + k * e + e * (k + 1) + (k + 1)


@pytest.mark.parametrize("classes", [11, 150])
@pytest.mark.parametrize(("backbone", "width", "heads"), [(vit_tiny, 96, 3), (vit_base, 384, 12), (vit_large, 512, 16)])
def test_parameters_are_those_of_the_specification(classes, backbone, width, heads):
    with no_init_parameters():
        body = backbone((64, 64), taps=(8, 16, 24) if width == 512 else (6, 8, 12), tap_norm=False)
        head = SegViTHead(body.channels, body.grids, classes, attention_dropout=0.0)
    layer = head.layers[0].cross_attention
    assert (head.channels, layer.num_heads, len(body.blocks[0].attn.qkv.weight)) == (width, heads, 6 * width)
    assert layer.num_heads == body.blocks[0].attn.num_heads
    assert sum(p.size for p in head.trainable_params()) == formula(classes, width, 2 * width)


# GFLOPs (multiply-accumulates) in the README of the release; it counts norms, too.
@pytest.mark.parametrize(("backbone", "taps", "size", "classes", "published"), [
    (vit_base, (6, 8, 12), 512, 150, 120.9),
    (vit_large, (8, 16, 24), 640, 150, 637.9),
    (vit_large, (8, 16, 24), 480, 60, 321.6),
    (vit_large, (8, 16, 24), 512, 171, 383.9),
])  # fmt: skip
def test_operations_are_those_that_were_published(backbone, taps, size, classes, published):
    with no_init_parameters():
        body = backbone((size, size), taps=taps, tap_norm=False)
        head = SegViTHead(body.channels, body.grids, classes, dropout=0.0, attention_dropout=0.0)
    total = (body.count_macs() + head.count_macs()) / 1e9
    assert 0.0 < published - total < 1.1


def test_fresh_weights():
    head = SegViTHead((256, 256), EQUAL, 64, num_layers=1)
    values = {name: p.asnumpy() for name, p in head.parameters_dict().items()}
    assert values["tokens"].std() == pytest.approx(1.0, abs=0.05)
    weights = {name: value for name, value in values.items() if name.endswith("weight")}
    assert len(weights) == 2 + 2 * 10 + 1
    for name, value in weights.items():
        assert value.std() == pytest.approx(0.02, rel=0.03) and abs(value.mean()) < 1e-3, name
    biases = [value for name, value in values.items() if name.endswith(("bias", "beta"))]
    assert not any(value.any() for value in biases)


def test_head_and_loss_belong_together():
    with no_init_parameters():
        head = SegViTHead(CHANNELS, EQUAL, K, **SIZES)
    check_outputs(head, create_loss({"name": "class_tokens"}, K))
    with pytest.raises(ValueError, match="loss 'class_mask' needs masks.*use loss class_tokens or partial"):
        check_outputs(head, create_loss({"name": "class_mask"}, K))


@pytest.mark.parametrize(("options", "message"), [
    ({"channels": 0}, "channels is 0; give at least 1"),
    ({"num_heads": 0}, "num_heads is 0; give at least 1"),
    ({"num_layers": 0}, "num_layers is 0; give at least 1"),
    ({"stride": 0}, "stride is 0; give at least 1"),
    ({"num_heads": 3}, "channels 8 is not a multiple of num_heads 3"),
])  # fmt: skip
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        SegViTHead(CHANNELS, EQUAL, K, **{**SIZES, **options})
