"""Two training steps of a batch normalisation, on one device or shared by several: outputs, gradients, statistics.

Letters: B samples of all devices, C channels.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.models.layers import SyncBatchNorm, synchronise_norms
from tests.running import draw

B, C = 4, 3
SHAPE = (B, C, 5, 7)


class NormGradients(nn.Cell):
    """Output of a norm, and the gradients of sum(output * weight) for its input, gamma and beta."""

    def __init__(self, norm: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.norm = norm
        parameters = ms.ParameterTuple([norm.gamma, norm.beta])
        self.differentiate = ops.value_and_grad(self.weigh, 0, parameters, has_aux=True)
        self.set_train()

    def weigh(self, x, weight):
        output = self.norm(x)
        return (output * weight).sum(), output

    def construct(self, x, weight):
        (_, output), (slope, slopes) = self.differentiate(x, weight)
        return output, slope, slopes[0], slopes[1]


def train_norm(norm: nn.Cell, rank: int, world_size: int) -> dict[str, np.ndarray]:
    """What two steps on the rank's samples give: output, x (its gradient), gamma and beta of each; then the statistics.

    The gradients of gamma and beta are those of the rank's samples, to be added up.
    """
    norm.gamma.set_data(Tensor(np.array([0.5, 1.0, 2.0], np.float32)))
    norm.beta.set_data(Tensor(np.array([-1.0, 0.0, 3.0], np.float32)))
    cell, found = NormGradients(norm), {}
    for step in range(2):
        x = draw(*SHAPE, seed=step) * np.arange(1.0, B + 1).reshape(B, 1, 1, 1) + 10.0 * np.arange(C).reshape(C, 1, 1)
        arrays = [Tensor(np.float32(array[rank::world_size])) for array in (x, draw(*SHAPE, seed=step + 7))]
        for name, value in zip(("output", "x", "gamma", "beta"), cell(*arrays), strict=True):
            found[f"{name} {step}"] = value.asnumpy()
    return {**found, "mean": norm.moving_mean.asnumpy(), "variance": norm.moving_variance.asnumpy()}


def train_shared_norm(rank: int, world_size: int) -> dict[str, np.ndarray]:
    """`train_norm` of a norm that spans all devices."""
    norm = SyncBatchNorm(C)
    synchronise_norms(norm, world_size)
    return train_norm(norm, rank, world_size)
