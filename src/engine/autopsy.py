"""What is written down when the numbers of a training run go bad: which samples, which terms, which module.

Letters: b samples of a micro-batch, n noise columns.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops

from src.distributed import pynative
from src.engine.train_step import TrainStep

norm_of = ops.MultitypeFuncGraph("norm_of")


@norm_of.register("Tensor")
def _norm_of(gradient):
    return ops.sqrt(2.0 * ops.L2Loss()(gradient))


class GradientNorms(nn.Cell):
    """The loss terms of one micro-batch and the norm of every parameter's gradient, of this device alone."""

    def __init__(self, step_cell: TrainStep) -> None:
        super().__init__(auto_prefix=False)
        self.step_cell, self.map = step_cell, ops.HyperMap()
        self.value_and_grad = ops.value_and_grad(self.forward, None, step_cell.optimizer.parameters, has_aux=True)
        self.set_train()

    def forward(self, noise, counts, *columns):
        return self.step_cell.forward(1.0, noise, counts, *columns)

    def construct(self, noise, counts, *columns):
        """noise (b, n), counts (3,) of the global batch, the batch's columns -> (terms, norms), tuples of scalars."""
        (_, terms), gradients = self.value_and_grad(noise, counts, *columns)
        return terms, self.map(norm_of, gradients)


def write_autopsy(
    path: Path, facts: Mapping[str, Any], step_cell: TrainStep, noise: np.ndarray, batches: Sequence[Mapping],
    counts: np.ndarray, samples: Sequence[Sequence[str]], classes: Sequence[str],
) -> None:  # fmt: skip
    """Repeats a step that updated nothing, and writes what it finds to `path` as JSON.

    facts: what is known already, written first. noise (accumulate, b, n), counts (3,) of the global batch; batches and
    samples: arrays and names of the samples of every micro-batch. All devices call it together, because normalisations
    may need them; each describes its own samples, and gradients before they are summed. Numbers that are not finite are
    written as text.
    """
    cell, parts = GradientNorms(step_cell), []
    for batch, factors, names in zip(batches, noise, samples, strict=True):
        arrays = [Tensor(np.ascontiguousarray(batch[name])) for name in step_cell.columns]
        terms, norms = cell(Tensor(factors), Tensor(counts), *arrays)
        terms = {name: float(value.asnumpy()) for name, value in zip(step_cell.loss.terms, terms, strict=True)}
        norms = by_module(step_cell.optimizer.parameters, norms)
        parts.append({
            "samples": list(names),
            "label_pixels": label_histogram(batch["label"], classes),
            "loss_terms": terms,
            "first_bad_module": first_bad_module(step_cell.network, batch["image"], factors) or after(terms, norms),
            "gradient_norms": norms,
        })  # fmt: skip
    weights = [p.name for p in step_cell.network.get_parameters() if not is_finite(p)]
    document = {**facts, "bad_weights": weights, "micro_batches": parts}
    path.write_text(json.dumps(as_json(document), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def first_bad_module(network: nn.Cell, image: np.ndarray, noise: np.ndarray) -> str | None:
    """Name and class of the first module of a network, in the order of computing, whose output is not finite.

    image (b, 3, H, W) uint8, noise (b, n). None where all outputs are finite. Modules with gradients of their own
    cannot be watched; the one around them is named.
    """
    found: list[str] = []

    def watch(name: str):
        def check(cell, inputs, output) -> None:
            if not found and not is_finite(output):
                found.append(f"{name or 'network'} ({type(cell).__name__})")

        return check

    with pynative():  # a compiled graph calls no hooks
        handles = [cell.register_forward_hook(watch(name)) for name, cell in network.cells_and_names()]
        try:
            network(Tensor(np.ascontiguousarray(image)), Tensor(noise))
        finally:
            for handle in handles:
                handle.remove()
    return found[0] if found else None


def after(terms: Mapping[str, float], norms: Mapping[str, float]) -> str:
    """What is first not finite where all modules are."""
    if not math.isfinite(sum(terms.values())):
        return "none: the loss"
    return "none" if math.isfinite(sum(norms.values())) else "none: the gradients"


def is_finite(output) -> bool:
    """Whether every number in a tensor, or in tuples and dicts of them, is finite."""
    if isinstance(output, dict):
        return all(map(is_finite, output.values()))
    if isinstance(output, tuple | list):
        return all(map(is_finite, output))
    return bool(np.isfinite(output.asnumpy()).all())


def label_histogram(label: np.ndarray, classes: Sequence[str]) -> dict[str, int]:
    """Pixels of every class that occurs in a label (B, H, W), and those that are ignored."""
    values, pixels = np.unique(label, return_counts=True)
    named = {value: classes[value] if value < len(classes) else "ignored" for value in values.tolist()}
    return {named[value]: count for value, count in zip(values.tolist(), pixels.tolist(), strict=True)}


def by_module(parameters: Sequence, norms: Sequence[Tensor]) -> dict[str, float]:
    """Gradient norm of every module that has parameters of its own, in the network's order."""
    squares: dict[str, float] = {}
    for parameter, norm in zip(parameters, norms, strict=True):
        module = parameter.name.rpartition(".")[0]
        squares[module] = squares.get(module, 0.0) + float(norm.asnumpy()) ** 2
    return {module: math.sqrt(square) for module, square in squares.items()}


def as_json(value: Any) -> Any:
    """The same with NaN and infinities, which JSON lacks, as text."""
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
