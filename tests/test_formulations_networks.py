"""Networks do not depend on the formulation: parameters, outputs and gradients as they are on GPU and Ascend.

Letters: B batch, K classes, h x w output grid.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src import functional
from src.models import plain, written
from tests.running import draw, randomise
from tests.tiny import BACKBONES, K, draw_batch, tiny_network

B = 2
# backbone: head, its options, image size. Norms take running statistics: those of a batch cancel gradients of biases.
CASES = {
    "vit": ("ecenet", {"norm": "batch", "num_rounds": 1}, (32, 48)),
    "swin": ("fcn", {"norm": "batch"}, (29, 45)),
}
WRITTEN = (written.Linear, written.LayerNorm, written.Gelu, written.AttentionCore)
PLAIN = (nn.GELU, plain.AttentionCore)


class Training(nn.Cell):
    """Logits, and the gradients of their weighted sum and of everything else a loss reads, by parameter."""

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        parameters = ms.ParameterTuple(network.trainable_params())
        self.differentiate = ops.value_and_grad(self.weigh, None, parameters, has_aux=True)
        self.set_train(False)

    def weigh(self, image, noise, weight):
        outputs = self.network(image, noise)
        logits = outputs["logits"]
        total = (logits * weight).sum()
        if "masks" in outputs:
            for each in outputs["masks"] + outputs["finest_mask"] + outputs["diverse"]:
                total = total + (each * each).sum()
        return total, logits

    def construct(self, image, noise, weight):
        (_, logits), gradients = self.differentiate(image, noise, weight)
        return logits, gradients


def build(name: str) -> nn.Cell:
    head, options, size = CASES[name]
    return tiny_network(name, head, size, **options)


def train(network: nn.Cell, name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits (B, K, h, w) and gradients by parameter name, with drop path and dropout on."""
    columns = len(network.noise_rates)
    keep = (np.arange(B)[:, None] + np.arange(columns)) % 3 > 0  # no column drops both images
    noise = (keep / (1.0 - network.noise_rates)).astype(np.float32)
    image = Tensor(draw_batch(B, size=CASES[name][2])["image"])
    logits, gradients = Training(network)(image, Tensor(noise), Tensor(draw(B, K, *network.backbone.grids[0])))
    names = [p.name for p in network.trainable_params()]
    return logits.asnumpy(), {name: g.asnumpy() for name, g in zip(names, gradients, strict=True)}


def kinds(network: nn.Cell, classes: tuple[type, ...]) -> set[type]:
    """Those of the classes that a cell of the network belongs to."""
    return {kind for kind in classes for _, cell in network.cells_and_names() if isinstance(cell, kind)}


@pytest.mark.parametrize("name", ["vit", pytest.param("swin", marks=pytest.mark.slow)])
def test_networks_are_the_same(name, monkeypatch):
    monkeypatch.setitem(BACKBONES["swin"], "depths", [2, 1, 1, 1])  # a shifted block in the first stage only
    network = build(name)
    randomise(network)
    assert kinds(network, WRITTEN + PLAIN) == set(WRITTEN)
    logits, gradients = train(network, name)
    monkeypatch.setattr(functional, "on_cpu", lambda: False)
    other = build(name)
    assert kinds(other, WRITTEN + PLAIN) == set(PLAIN)
    shapes = [[(key, p.shape) for key, p in each.parameters_dict().items()] for each in (network, other)]
    assert shapes[0] == shapes[1]
    assert ms.load_param_into_net(other, network.parameters_dict()) == ([], [])
    wanted_logits, wanted = train(other, name)
    assert np.abs(logits - wanted_logits).max() < 1e-5 * np.abs(wanted_logits).max()
    assert min(float(np.abs(value).max()) for value in wanted.values()) > 1e-5
    shares = {key: float(np.abs(gradients[key] - wanted[key]).max() / np.abs(wanted[key]).max()) for key in wanted}
    assert {key: share for key, share in shares.items() if not share < 1e-4} == {}


@pytest.mark.slow
def test_products_in_half_precision_change_a_little(monkeypatch):
    """Digits of float16 end at 5e-4."""
    monkeypatch.setattr(functional, "on_cpu", lambda: False)
    network = build("vit")
    randomise(network)
    wanted_logits, wanted = train(network, "vit")
    plain.multiply_in(network, ms.float16)
    logits, gradients = train(network, "vit")
    assert logits.dtype == np.float32 and {value.dtype for value in gradients.values()} == {np.dtype(np.float32)}
    assert 1e-5 < np.abs(logits - wanted_logits).max() / np.abs(wanted_logits).max() < 1e-2
    lengths = {key: np.linalg.norm(gradients[key] - wanted[key]) / np.linalg.norm(wanted[key]) for key in wanted}
    assert {key: length for key, length in lengths.items() if not length < 0.05} == {}
    assert np.median(list(lengths.values())) > 1e-5


@pytest.mark.parametrize("name", ["vit", pytest.param("swin", marks=pytest.mark.slow)])
def test_recomputing_on_cpu_changes_no_gradient(name, monkeypatch):
    monkeypatch.setitem(CASES, "vit", ("fcn", {"norm": "batch"}, (32, 48)))
    network = build(name)
    randomise(network)
    logits, gradients = train(network, name)
    monkeypatch.setitem(BACKBONES[name], "recompute", True)
    again = build(name)
    cells = [cell for _, cell in again.backbone.cells_and_names()]
    depth = {"vit": 2, "swin": 5}[name]
    assert sum(isinstance(cell, written.RecomputedMlp) for cell in cells) == depth
    assert sum(getattr(cell, "recompute", None) is True for cell in cells) == depth
    assert ms.load_param_into_net(again, network.parameters_dict()) == ([], [])
    wanted_logits, wanted = train(again, name)
    assert np.abs(logits - wanted_logits).max() <= 1e-6 * np.abs(wanted_logits).max()
    shares = {key: float(np.abs(gradients[key] - wanted[key]).max() / np.abs(wanted[key]).max()) for key in wanted}
    assert {key: share for key, share in shares.items() if not share < 2e-5} == {}


@pytest.mark.slow
def test_recomputing_elsewhere_changes_no_gradient(monkeypatch):
    """`Cell.recompute`, as on GPU and Ascend."""
    monkeypatch.setattr(functional, "on_cpu", lambda: False)
    monkeypatch.setitem(CASES, "vit", ("fcn", {"norm": "batch"}, (32, 48)))
    logits, gradients = train(build("vit"), "vit")
    for name in ("vit", "swin"):
        monkeypatch.setitem(BACKBONES[name], "recompute", True)
    again, stages = build("vit"), tiny_network("swin", "fcn").backbone.stages
    blocks = [*again.backbone.blocks, *(block for stage in stages for block in stage.blocks)]
    assert [block.get_scope() for block in blocks] == ["recompute_"] * 7  # what MindSpore marks them with
    wanted_logits, wanted = train(again, "vit")
    assert logits.tobytes() == wanted_logits.tobytes()
    assert {name: value.tobytes() for name, value in gradients.items()} == {n: v.tobytes() for n, v in wanted.items()}
