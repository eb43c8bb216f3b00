"""Worker that runs our networks, set up as train.py and predict.py do; also makes weights and inputs for all workers.

Letters: B images, K classes, n noise columns, H x W image, h x w output grid.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import src  # noqa: F401  (before MindSpore, whose log level it sets)

# isort: split
import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from benchmarks.workers.rows import draw_batch
from benchmarks.workers.serving import Call, Worker, serve
from src import distributed
from src.config import ModelConfig, OptimizerConfig
from src.engine.graphs import MindIR, export_mindir
from src.engine.optimizer import create_optimizer
from src.engine.predict_net import PredictNet
from src.engine.train_step import TrainStep, draw_noise, run_step
from src.losses import batch_counts, create_loss
from src.models import create_model

COLUMNS = ("image", "label", "valid", "present")
LAST_LAYER = "head.classifier.weight"
LAST_SCALE = 10.0  # of its weights, which start so small that logits would hide a difference


class Logits(nn.Cell):
    """Image (B, 3, H, W) uint8, noise (B, n) or None -> logits (B, K, h, w)."""

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, image, noise=None):
        return self.network(image, noise)["logits"]


class Product(nn.Cell):
    """First element (1, 1) of x (rows, inner) times w (columns, inner) transposed, the form of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.multiply = ops.MatMul(transpose_b=True)

    def construct(self, x, w):
        return ops.slice(self.multiply(x, w), (0, 0), (1, 1))


def create_network(row: dict) -> nn.Cell:
    """The row's network with fresh weights."""
    return create_model(ModelConfig(**row["model"]), row["classes"], tuple(row["size"]))


def load_weights(network: nn.Cell, inputs) -> None:
    """Copies the arrays `weight/<name>` of inputs.npz."""
    for name, parameter in network.parameters_dict().items():
        parameter.set_data(Tensor(inputs[f"weight/{name}"]))


def randomise(network: nn.Cell, seed: int) -> None:
    """Norms and biases away from 1 and 0, and last weights large enough to be seen in the logits."""
    random = np.random.default_rng(seed)
    for name, parameter in network.parameters_dict().items():
        value = parameter.asnumpy()
        if name.endswith((".gamma", ".moving_variance")):
            value = random.uniform(0.8, 1.2, value.shape)
        elif value.ndim == 1:
            value = random.normal(scale=0.1, size=value.shape)
        elif name == LAST_LAYER:
            value = value * LAST_SCALE
        else:
            continue
        parameter.set_data(Tensor(value.astype(np.float32)))


def prepare(row: dict, folder: Path) -> Call:
    """The call of a row: a training step, the forward of a batch, or the exported model on one image."""
    if row["mode"] == "infer":
        model = MindIR(folder / "model.mindir")
        picture = np.load(folder / "inputs.npz")["picture"]
        return lambda rate: {"labels": model.labels(picture)}
    with np.load(folder / "inputs.npz") as inputs:
        network = create_network(row)
        load_weights(network, inputs)
        batch = {name: inputs[f"batch/{name}"] for name in COLUMNS}
        noise, counts = inputs["noise"], inputs["counts"]
    if row["mode"] == "forward":
        logits, image = Logits(network.set_train(False)), Tensor(batch["image"])
        return lambda rate: {"logits": logits(image).asnumpy()}
    return create_step(row, network, batch, noise, counts)


def create_step(row: dict, network: nn.Cell, batch: dict, noise: np.ndarray, counts: np.ndarray) -> Call:
    """One optimiser step on the batch as train.py makes it: rate -> terms and gradient norm."""
    settings = OptimizerConfig(**row["optimizer"])
    loss = create_loss(row["loss"], row["classes"])
    cell = TrainStep(network, loss, create_optimizer(network, settings), COLUMNS, clip_norm=settings.clip_norm)
    number = 0

    def step(rate: float) -> dict[str, float]:
        nonlocal number
        terms, norm, _ = run_step(cell, cell.optimizer.inputs(number, rate), noise[None], [batch], counts)
        number += 1
        return {**terms, "norm": norm}

    return step


def multiply(rows: int, inner: int, columns: int) -> Callable[[], object]:
    """A call that multiplies once and waits."""
    random = np.random.default_rng(0)
    x, w = (Tensor(random.standard_normal((side, inner), np.float32)) for side in (rows, columns))
    product = Product()
    return lambda: product(x, w).asnumpy()


class MindSporeWorker(Worker):
    """Also makes what all workers start from."""

    def make(self, row: dict, folder: str) -> dict:
        """Writes inputs.npz, reference.npz (logits) and for mode infer model.mindir; returns the network's GMACs.

        The logits are those of training (with noise) for mode train, else of evaluation.
        """
        distributed.set_seed(row["seed"])
        network = create_network(row)
        randomise(network, row["seed"])
        batch = draw_batch(row)
        noise = draw_noise(network.noise_rates, row["seed"], 0, row["batch"])[0]
        picture = batch["image"][0].transpose(1, 2, 0)
        np.savez(
            Path(folder) / "inputs.npz", noise=noise, counts=batch_counts(batch), picture=picture,
            **{f"weight/{name}": p.asnumpy() for name, p in network.parameters_dict().items()},
            **{f"batch/{name}": batch[name] for name in COLUMNS},
        )  # fmt: skip
        if row["mode"] == "infer":
            # The description that the loader asks for; the classes are only numbered.
            info = {"kind": "labels", "size": json.dumps(row["size"]), "palette": json.dumps([[0, 0, 0]]),
                    "classes": json.dumps([str(i) for i in range(row["classes"])])}  # fmt: skip
            export_mindir(PredictNet(network, tuple(row["size"]), "labels"), Path(folder) / "model.mindir", info)
        if row["reference"]:
            training = row["mode"] == "train"
            logits = Logits(network.set_train(training))
            values = logits(Tensor(batch["image"]), Tensor(noise) if training else None)
            np.savez(Path(folder) / "reference.npz", logits=values.asnumpy())
        backbone, head = network.backbone.count_macs(), network.head.count_macs()
        return {"gmacs": {"backbone": backbone / 1e9, "head": head / 1e9}}


def main() -> None:
    """Starts answering."""
    distributed.setup("CPU", "graph")
    serve(MindSporeWorker(prepare, multiply, {"mindspore": ms.__version__, "python": sys.version.split()[0]}))


if __name__ == "__main__":
    main()
