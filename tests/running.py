"""Running cells on NumPy arrays, with weights that no initialisation makes equal."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal float32 values."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def randomise(cell: nn.Cell) -> dict[str, np.ndarray]:
    """Random values for every parameter, norms and running statistics included; returned by name in float64."""
    random, values = np.random.default_rng(1), {}
    for name, parameter in cell.parameters_and_names():
        if name.endswith(("gamma", "moving_variance")):
            value = 0.5 + random.random(parameter.shape)
        else:
            value = random.normal(scale=0.5, size=parameter.shape)
        parameter.set_data(Tensor(value.astype(np.float32)))
        values[name] = value.astype(np.float32).astype(np.float64)
    cell.set_train(False)
    return values


def run(cell: nn.Cell, *inputs):
    """Outputs of a cell as arrays, in the tuples and dicts they come in. Tuples of arrays are inputs, not constants."""
    return to_arrays(cell(*[ms.mutable(tuple(map(Tensor, x))) if isinstance(x, tuple) else Tensor(x) for x in inputs]))


def to_arrays(output):
    if isinstance(output, dict):
        return {key: to_arrays(value) for key, value in output.items()}
    return tuple(map(to_arrays, output)) if isinstance(output, tuple) else output.asnumpy()
