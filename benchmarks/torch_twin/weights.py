"""Our parameters, as arrays by name, into the twin."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

RENAMED = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
UNUSED = "num_batches_tracked"  # BatchNorm's counter of batches; nothing reads it


def twin_name(name: str) -> str:
    """Name in the twin of one of our parameters."""
    owner, _, last = name.rpartition(".")
    return f"{owner}.{RENAMED.get(last, last)}" if owner else name


def load_weights(twin: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Copies every parameter and running statistic, one at a time; a matrix may fill the convolution that it is.

    Raises ValueError that lists names that one side lacks, and shapes that do not fit.
    """
    state = {name: value for name, value in twin.state_dict().items() if not name.endswith(UNUSED)}
    source = {twin_name(name): name for name in weights}
    problems = [f"{name}: not in the weights" for name in state if name not in source]
    problems += [f"{source[name]}: not in the twin" for name in source if name not in state]
    with torch.no_grad():
        for name in state.keys() & source.keys():
            value = torch.from_numpy(np.asarray(weights[source[name]]))
            wanted = state[name].shape
            if value.shape[:1] != wanted[:1] or value.numel() != wanted.numel():
                problems.append(f"{source[name]}: {tuple(value.shape)}, the twin has {tuple(wanted)}")
                continue
            state[name].copy_(value.reshape(wanted))
    if problems:
        raise ValueError("weights do not fit the twin:\n  " + "\n  ".join(sorted(problems)))
