"""Gradients of the full ECENet loss: they reach every parameter, and they are slopes of the loss."""

from dataclasses import dataclass

import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from src.engine.train_step import TrainStep, draw_noise
from src.losses import batch_counts
from tests.running import draw
from tests.tiny import COLUMNS, draw_batch, tiny_network, tiny_step

SIZE = (64, 96)
# Normalisation over the batch takes away a constant that is added to a whole channel: the biases of the convolution
# before a norm, and of the tap norms before a 1x1 convolution and a norm. With running statistics they have a gradient.
CANCELLED = (".diverse.bias", "backbone.norms.0.beta", "backbone.norms.1.beta")


class Gradients(nn.Cell):
    """Total loss, terms and gradients of a train step, without its update."""

    def __init__(self, step: TrainStep, train: bool) -> None:
        super().__init__(auto_prefix=False)
        self.step = step
        self.set_train(train)

    def construct(self, noise, counts, *columns):
        return self.step.value_and_grad(1.0, noise, counts, *columns)


@dataclass
class Case:
    """One network with one batch: `differentiate` gives the loss and the gradients by parameter name."""

    network: nn.Cell
    graph: Gradients
    noise: np.ndarray

    def differentiate(self) -> tuple[float, dict[str, np.ndarray]]:
        batch = draw_batch(2, seed=4, size=SIZE)
        columns = [Tensor(batch[name]) for name in COLUMNS]
        (total, _), gradients = self.graph(Tensor(self.noise), Tensor(batch_counts(batch)), *columns)
        names = [p.name for p in self.graph.step.optimizer.parameters]
        return float(total.asnumpy()), {name: g.asnumpy() for name, g in zip(names, gradients, strict=True)}


def make_case(backbone: str, train: bool) -> Case:
    network = tiny_network(backbone, norm="batch", size=SIZE)
    for parameter in network.get_parameters():
        if parameter.name.endswith("diverse_norm.beta"):  # away from the kink of the gate's ReLU at 0
            parameter.set_data(Tensor(draw(*parameter.shape)))
    return Case(network, Gradients(tiny_step(network), train), draw_noise(network.noise_rates, 0, 0, 2)[0])


@pytest.fixture(scope="module")
def vit_in_training():
    return make_case("vit", train=True)


def largest(gradients: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(np.abs(value).max()) for name, value in gradients.items()}


def test_training_reaches_every_parameter(vit_in_training):
    total, gradients = vit_in_training.differentiate()
    assert np.isfinite(total)
    sizes = largest(gradients)
    cancelled = [name for name in sizes if name.endswith(CANCELLED)]
    assert len(cancelled) == 2 + 2
    assert {name: size for name, size in sizes.items() if name in cancelled and size > 1e-7} == {}
    assert {name: size for name, size in sizes.items() if name not in cancelled and size < 2e-6} == {}


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vit", "swin"])
def test_running_statistics_let_every_gradient_through(backbone):
    _, gradients = make_case(backbone, train=False).differentiate()
    sizes = largest(gradients)
    assert {name: size for name, size in sizes.items() if size < 1e-8} == {}
    cancelled = {name: size for name, size in sizes.items() if name.endswith(CANCELLED)}
    assert len(cancelled) == {"vit": 2 + 2, "swin": 4}[backbone] and min(cancelled.values()) > 1e-6, cancelled


def slope(case: Case, parameter: Parameter, direction: np.ndarray, reaches: tuple[float, ...]) -> float:
    """Median of central differences of the loss along a direction: one reach may meet a kink, or too little change."""
    start, slopes = parameter.asnumpy().copy(), []
    for reach in reaches:
        sides = []
        for shift in (reach, -reach):
            parameter.set_data(Tensor((start + shift * direction).astype(np.float32)))
            sides.append(case.differentiate()[0])
        slopes.append((sides[0] - sides[1]) / (2.0 * reach))
    parameter.set_data(Tensor(start))
    return float(np.median(slopes))


def test_gradients_are_slopes(vit_in_training):
    case = vit_in_training
    _, gradients = case.differentiate()
    lengths = {name: float(np.linalg.norm(value.astype(np.float64))) for name, value in gradients.items()}
    checked = [p for p in case.network.trainable_params() if lengths[p.name] > 5e-3]
    assert len(checked) > 50
    assert {p.name.split(".")[1] for p in checked} >= {
        "pos_embed", "patch_embed", "reconstruct", "laterals", "class_mask", "embeddings", "attentions", "updaters",
        "fusion", "classifier", "confidence",
    }  # fmt: skip
    wrong = {}
    for parameter in checked:
        length = lengths[parameter.name]
        reaches = (1e-3, 2e-3, 4e-3) if length > 0.05 else (4e-3, 7e-3, 1e-2)
        direction = gradients[parameter.name] / length
        found = slope(case, parameter, direction, reaches[:1])
        if abs(found - length) > 1e-2 * length:
            found = slope(case, parameter, direction, reaches)
        if abs(found - length) > 1e-2 * length:
            wrong[parameter.name] = found, length
    assert wrong == {}
