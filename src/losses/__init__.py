"""Losses by name, from their part of the configuration.

A loss is a Cell `construct(outputs, batch, counts) -> terms`: a tuple of float32 scalars, already weighted, whose sum
is differentiated; `loss.terms` names them. (Graph mode differentiates tuples reliably, dicts not.) counts (3,) float32
are those of `batch_counts`, added up over the whole global batch.
"""

import inspect
from typing import Any

from mindspore import nn

from src.config import lookup
from src.losses.class_mask import ClassMaskLoss
from src.losses.counts import batch_counts
from src.losses.cross_entropy import CrossEntropyLoss

__all__ = ["LOSSES", "batch_counts", "create_loss"]

LOSSES = {"cross_entropy": CrossEntropyLoss, "class_mask": ClassMaskLoss}


def create_loss(loss: dict[str, Any], num_classes: int) -> nn.Cell:
    """The loss that `loss["name"]` names, with the other keys as its options.

    Raises ValueError for an unknown name, an option that the loss does not take, and a value that is not allowed.
    """
    builder = lookup(LOSSES, loss["name"], "loss")
    options = {key: value for key, value in loss.items() if key != "name"}
    allowed = [name for name in inspect.signature(builder).parameters if name != "num_classes"]
    for key in options:
        if key not in allowed:
            place = f"loss ({loss['name']})"
            raise ValueError(f"{place}: unexpected argument {key!r}; allowed: {', '.join(allowed)}")
    try:
        return builder(num_classes, **options)
    except ValueError as error:
        raise ValueError(f"loss ({loss['name']}): {error}") from error
