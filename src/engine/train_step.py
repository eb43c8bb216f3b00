"""One optimiser step as one compiled graph.

Letters: b samples of a micro-batch, n noise columns, T loss terms.
"""

from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from src.engine.optimizer import global_norm

NOISE_STREAM = 3  # keeps the noise's generator apart from those of samples and order (data/loader.py)


scale = ops.MultitypeFuncGraph("scale")
add_to = ops.MultitypeFuncGraph("add_to")
clear = ops.MultitypeFuncGraph("clear")
copy_to = ops.MultitypeFuncGraph("copy_to")


@scale.register("Tensor", "Tensor")
def _scale(factor, gradient):
    return gradient * factor


@add_to.register("Tensor", "Tensor")
def _add_to(total, gradient):
    return ops.assign_add(total, gradient)


@clear.register("Tensor")
def _clear(total):
    return ops.assign(total, ops.zeros_like(total))


@copy_to.register("Tensor", "Tensor")
def _copy_to(target, source):
    return ops.assign(target, source)


class TrainStep(nn.Cell):
    """Forward, gradients, sum over devices and micro-batches, clipping, update.

    Loss terms are divided by the counts of the whole global batch, so that they and their gradients are summed, never
    averaged, over micro-batches and devices.

    A step whose loss or gradient norm is not finite updates nothing: weights, optimiser states and running statistics
    of normalisations stay as the step before left them. All devices see the same sums, so they decide alike.

    Args:
        network: image, noise -> outputs.
        loss: outputs, batch, counts -> tuple of scalar terms, whose names are `loss.terms`.
        optimizer: see `optimizer.py`.
        columns: names of the batch's arrays, in the order in which `construct` gets them.
        clip_norm: bound of the global gradient norm; 0 is off.
        accumulate: micro-batches a step.
        world_size: devices; above 1 the process group must exist.
        scaled: the last of the inputs of `construct` is the scale of the loss, see `precision.py`. Terms and norm are
            those without it.
    """

    def __init__(
        self, network: nn.Cell, loss: nn.Cell, optimizer: nn.Cell, columns: tuple[str, ...], *,
        clip_norm: float = 0.0, accumulate: int = 1, world_size: int = 1, scaled: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(auto_prefix=False)
        self.network, self.loss, self.optimizer, self.columns = network, loss, optimizer, tuple(columns)
        self.clip_norm, self.accumulate, self.world_size, self.scaled = clip_norm, accumulate, world_size, scaled
        self.map = ops.HyperMap()
        if accumulate > 1:
            self.sums = optimizer.parameters.clone("gradient_sum", "zeros")
            self.loss_sum = Parameter(Tensor(0.0, ms.float32), "loss_sum", requires_grad=False)
        statistics = running_statistics(network)
        self.has_statistics = len(statistics) > 0
        if self.has_statistics:
            self.statistics = ParameterTuple(statistics)
            self.good_statistics = self.statistics.clone("good", "same")
        if world_size > 1:
            self.all_reduce = ops.AllReduce()
        self.value_and_grad = ops.value_and_grad(self.forward, None, optimizer.parameters, has_aux=True)
        self.set_train()

    def inputs(self, updates: int, rate: float, loss_scale: float = 1.0) -> np.ndarray:
        """Numbers of a step at learning rate `rate`, after `updates` updates, for `construct`: float32."""
        inputs = self.optimizer.inputs(updates, rate)
        return np.append(inputs, np.float32(loss_scale)) if self.scaled else inputs

    def forward(self, factor, noise, counts, *columns):
        """Total loss times a factor, and its terms, in the order of loss.terms; counts (3,)."""
        batch = {}
        for i in range(len(self.columns)):
            batch[self.columns[i]] = columns[i]
        terms = self.loss(self.network(batch["image"], noise), batch, counts)
        return factor * add_up(terms), terms

    def construct(self, inputs, last, noise, counts, *columns):
        """One micro-batch.

        inputs: the optimiser's numbers of the step, and the scale of the loss if there is one; last: bool scalar,
        whether this micro-batch ends the step; noise (b, n); counts (4,): the loss's three of the local share of the
        global batch, then 1.0 where this device was asked to stop, or NaN for a rehearsal, a step that updates nothing.
        Returns (terms of this micro-batch over all devices; gradient norm before clipping, not finite where nothing was
        updated, 0 unless last; how many devices were asked to stop).
        """
        if self.world_size > 1:
            counts = self.all_reduce(counts)
        factor = inputs[-1] if self.scaled else 1.0
        (_, terms), gradients = self.value_and_grad(factor, noise, counts[:3], *columns)
        if self.world_size > 1:
            terms = self.map(self.all_reduce, terms)
        if self.accumulate == 1:
            return terms, self.apply(gradients, add_up(terms), counts[3], inputs), counts[3]
        norm = ops.zeros((), ms.float32)
        norm = ops.depend(norm, self.map(add_to, self.sums, gradients))
        norm = ops.depend(norm, ops.assign_add(self.loss_sum, add_up(terms)))
        if last:
            norm = self.apply(self.sums, self.loss_sum, counts[3], inputs)
            norm = ops.depend(norm, self.map(clear, self.sums))
            norm = ops.depend(norm, ops.assign(self.loss_sum, ops.zeros_like(self.loss_sum)))
        return terms, norm, counts[3]

    def apply(self, gradients, loss, stops, inputs):
        """Sums gradients over devices and, if they, the loss and stops are finite, updates; returns the norm.

        The update is a branch of the graph: selecting old or new values would be one more pass over every parameter.
        """
        if self.world_size > 1:
            gradients = self.map(self.all_reduce, gradients)
        norm = global_norm(gradients)
        if self.scaled:
            norm = norm / inputs[-1]
        norm = ops.select(ops.isfinite(loss), norm, loss)
        norm = ops.select(ops.isfinite(stops), norm, stops)
        if ops.isfinite(norm):
            norm = ops.depend(norm, self.update(gradients, norm, inputs))
        elif self.has_statistics:
            norm = ops.depend(norm, self.map(copy_to, self.statistics, self.good_statistics))
        return norm

    def update(self, gradients, norm, inputs):
        """Clips gradients of this norm, updates the parameters and keeps the running statistics as good ones."""
        factor = 1.0 / inputs[-1] if self.scaled else ops.ones((), ms.float32)
        if self.clip_norm > 0.0:
            factor = factor * ops.minimum(self.clip_norm / (norm + 1e-6), ops.ones((), ms.float32))
        if self.clip_norm > 0.0 or self.scaled:
            gradients = self.map(ops.partial(scale, factor), gradients)
        updated = self.optimizer(gradients, inputs)
        if self.has_statistics:
            updated = ops.depend(updated, self.map(copy_to, self.good_statistics, self.statistics))
        return updated


def running_statistics(network: nn.Cell) -> list[Parameter]:
    """What the forward of a network changes: running mean and variance of its batch normalisations."""
    norms = [cell for _, cell in network.cells_and_names() if isinstance(cell, nn.BatchNorm2d)]
    return [parameter for cell in norms for parameter in (cell.moving_mean, cell.moving_variance)]


def add_up(terms):
    """Sum of a tuple of scalars."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def draw_noise(
    rates: np.ndarray, seed: int, step: int, batch_size: int, *, accumulate: int = 1, rank: int = 0, world_size: int = 1
) -> np.ndarray:
    """Keep factors of one step for the samples of one rank: (accumulate, batch_size, n) float32, 0 or 1 / (1 - rate).

    Drawn for the whole global batch from (seed, step), in the order of the samples' positions, so that the devices
    together drop what one device with all samples would drop.
    """
    rng = np.random.default_rng((seed, NOISE_STREAM, step))
    keep = rng.random((accumulate * batch_size * world_size, len(rates)), np.float32) >= rates
    factors = (keep / (1.0 - rates)).astype(np.float32)[rank::world_size]
    return factors.reshape(accumulate, batch_size, len(rates))


class StepResult(NamedTuple):
    """terms: summed over micro-batches and devices; norm: of the gradients, not finite where the step updated nothing;
    stop: whether a device was asked to stop before the step."""

    terms: dict[str, float]
    norm: float
    stop: bool


def run_step(
    step_cell: TrainStep, inputs: np.ndarray, noise: np.ndarray, batches: list, counts: np.ndarray, stop: float = 0.0
) -> StepResult:
    """Runs the micro-batches of one optimiser step.

    noise (accumulate, b, n); batches: a dict of arrays per micro-batch; counts (3,) over all of them; stop: 1.0 where
    this device was asked to stop, NaN for a rehearsal.
    """
    totals: dict[str, float] = {}
    counts = np.append(counts, stop).astype(np.float32)
    for i, batch in enumerate(batches):
        arrays = [Tensor(np.ascontiguousarray(batch[name])) for name in step_cell.columns]
        last = Tensor(i == len(batches) - 1)
        terms, norm, stops = step_cell(Tensor(inputs), last, Tensor(noise[i]), Tensor(counts), *arrays)
        for name, value in zip(step_cell.loss.terms, terms, strict=True):
            totals[name] = totals.get(name, 0.0) + float(value.asnumpy())
    return StepResult(totals, float(norm.asnumpy()), bool(stops.asnumpy() > 0))
