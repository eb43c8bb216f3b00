"""Gradients of AlignSeg with its loss: which parameters they reach at the start and later, and that they are slopes."""

import numpy as np
import pytest
from mindspore import Tensor

from src.data.toy_scenes import TOY_CLASSES, draw_scene
from src.engine.train_step import draw_noise, run_step
from src.losses import batch_counts
from tests.running import draw
from tests.test_gradients import SIZE, Case, Gradients, largest, slope
from tests.tiny import tiny_network, tiny_step

CANCELLED = ("head.main.conv.bias", "head.auxiliary.conv.bias")  # a batch norm follows
OFFSET_HEADS = 2 * 4 + 1


@pytest.fixture(scope="module")
def case():
    network = tiny_network("resnet", "alignseg", norm="batch", size=SIZE)
    graph = Gradients(tiny_step(network, "alignseg"), train=True)
    return Case(network, graph, draw_noise(network.noise_rates, 0, 0, 2)[0])


def test_at_the_start_only_the_last_convolution_of_offsets_learns(case):
    sizes = largest(case.differentiate()[1])
    early = [name for name in sizes if ".reduce." in name or (".norm." in name and ".offset" in name)]
    last = [name for name in sizes if name.endswith(".offset.weight")]
    assert (len(early), len(last)) == (3 * OFFSET_HEADS, OFFSET_HEADS)
    assert {name: sizes[name] for name in early if sizes[name] > 0.0} == {}
    assert {name: sizes[name] for name in last if sizes[name] < 1e-7} == {}


def test_later_gradients_reach_every_parameter_and_are_slopes(case):
    for parameter in case.network.get_parameters():
        if parameter.name.endswith(".offset.weight"):
            parameter.set_data(Tensor(0.05 * draw(*parameter.shape)))
    total, gradients = case.differentiate()
    assert np.isfinite(total)
    sizes = largest(gradients)
    assert {name: sizes[name] for name in CANCELLED if sizes[name] > 1e-6} == {}
    assert {name: size for name, size in sizes.items() if name not in CANCELLED and size < 1e-7} == {}
    lengths = {name: float(np.linalg.norm(value.astype(np.float64))) for name, value in gradients.items()}
    checked = [p for p in case.network.trainable_params() if lengths[p.name] > 1e-2 and not p.name.endswith("bias")]
    checked = checked[:: max(len(checked) // 12, 1)]
    assert {p.name.split(".")[0] for p in checked} == {"backbone", "head"}
    wrong = {}
    for parameter in checked:
        length = lengths[parameter.name]
        # ReLUs, maxima and the pixel grid bend the loss: short steps, as far as rounding allows.
        reaches = (1e-4, 2e-4, 4e-4) if length > 1.0 else (5e-4, 1e-3, 2e-3)
        direction = gradients[parameter.name] / length
        found = slope(case, parameter, direction, reaches[:1])
        if abs(found - length) > 4e-2 * length:
            found = slope(case, parameter, direction, reaches)
        if abs(found - length) > 4e-2 * length:
            wrong[parameter.name] = found, length
    assert wrong == {}


@pytest.mark.slow
def test_four_images_are_learnt_by_heart():
    """Section 7 of the spec: cross entropy below 0.1 in a few hundred steps at a learning rate of 0.01."""
    size, number = (64, 96), len(TOY_CLASSES)
    images, labels = zip(*(draw_scene(0, i, size) for i in range(4)), strict=True)
    label = np.stack(labels).astype(np.int32)
    present = np.tile(np.arange(number, dtype=np.int32), (4, 1))
    batch = {
        "image": np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)), "label": label,
        "valid": np.ones(label.shape, np.uint8), "present": present,
    }  # fmt: skip
    network = tiny_network("resnet", "alignseg", size, number, norm="batch", channels=32, dropout=0.0)
    step = tiny_step(network, "alignseg", {"momentum": 0.9}, num_classes=number)
    noise, rate = np.ones((1, 4, len(network.noise_rates)), np.float32), np.array([0.01], np.float32)
    losses = [run_step(step, rate, noise, [batch], batch_counts(batch)).terms["ce"] for _ in range(450)]
    assert losses[0] > 1.0 and np.mean(losses[-50:]) < 0.1  # 0.09
