"""Parts of the training step that tools/benchmark.py times: their gradients, on toy cells."""

from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from src.engine import benchmark


class ToyBackbone(nn.Cell):
    channels, grids, noise_rates = (3, 3), ((2, 2), (2, 2)), np.zeros(1, np.float32)

    def __init__(self):
        super().__init__()
        self.w = Parameter(Tensor(np.float32(2.0)), name="w")

    def construct(self, image, noise):
        return image * self.w, image * self.w * self.w * noise[0, 0]


class ToyHead(nn.Cell):
    noise_rates = np.zeros(1, np.float32)

    def __init__(self):
        super().__init__()
        self.a = Parameter(Tensor(np.float32(2.0)), name="a")
        self.b = Parameter(Tensor(np.float32(3.0)), name="b")
        self.c = Parameter(Tensor(np.float32(4.0)), name="c")

    def construct(self, features, noise):
        x, y = features
        return {"logits": x * self.a, "empty": (), "masks": (y * self.b, x * y), "unread": (x * self.c,)}


class ToyLoss(nn.Cell):
    terms = ("one", "two")

    def construct(self, outputs, batch, counts):
        weight = batch["label"].sum().astype(ms.float32) / counts[0]
        return outputs["logits"].sum() * weight, (outputs["masks"][0] * outputs["masks"][1]).sum()


def test_backbone_part_differentiates_its_parameters():
    image, g, h = (np.random.default_rng(i).normal(size=(1, 3, 2, 2)).astype(np.float32) for i in range(3))
    noise = np.full((1, 1), 5.0, np.float32)
    value, gradients = benchmark.BackbonePass(ToyBackbone())(*map(Tensor, (image, noise, g, h)))
    assert value.asnumpy() == pytest.approx((2 * image * g + 20 * image * h).sum(), rel=1e-5)
    assert gradients[0].asnumpy() == pytest.approx((image * g + 20 * image * h).sum(), rel=1e-5)  # d/dw of w, 5 w^2


def test_training_parts_differentiate_what_the_loss_reads(monkeypatch):
    passes = {}
    build = benchmark.HeadPass

    def keep(*arguments):
        passes["head"], passes["places"] = build(*arguments), arguments[2]
        return passes["head"]

    monkeypatch.setattr(benchmark, "HeadPass", keep)
    network = SimpleNamespace(backbone=ToyBackbone(), head=ToyHead(), backbone_columns=1)
    batch = {"image": np.zeros((1, 3, 2, 2), np.uint8), "label": np.full((1, 2, 2), 3, np.int32)}
    parts = benchmark.training_parts(
        network, ToyLoss(), np.ones((1, 2), np.float32), np.full(3, 4, np.float32), batch, ("image", "label")
    )
    assert list(parts) == ["backbone", "head", "loss"]
    assert passes["places"] == [("logits", -1), ("masks", 0), ("masks", 1)]  # no "unread"

    _, x, y = (tensor.asnumpy() for tensor in benchmark.draw_inputs(network, (1, 3, 2, 2)))
    logits, first, second = 2 * x, 3 * y, x * y
    loss = 3 * logits.sum() + (first * second).sum()  # weight 12 / 4
    assert parts["loss"]() == pytest.approx(loss, rel=1e-4)
    # The head's scalar is sum(output * gradient): the second term is of degree two in the masks, so it counts twice.
    assert parts["head"]() == pytest.approx(3 * logits.sum() + 2 * (first * second).sum(), rel=1e-4)
    assert np.isfinite(parts["backbone"]())

    noise, gradients = np.ones((1, 1), np.float32), (np.full_like(x, 3.0), second, first)
    _, (maps, weights) = passes["head"](*map(Tensor, (noise, x, y, *gradients)))
    np.testing.assert_allclose(maps[0].asnumpy(), 6 + y * first, rtol=1e-5)
    np.testing.assert_allclose(maps[1].asnumpy(), 3 * second + x * first, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([w.asnumpy() for w in weights], [3 * x.sum(), (y * second).sum(), 0.0], rtol=1e-4)
