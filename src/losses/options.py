"""Check of the losses' weights, made when a loss is built."""

import math
from collections.abc import Mapping


def read_weights(weights: Mapping[str, float] | None, default: Mapping[str, float]) -> dict[str, float]:
    """The default weights with the given ones put over them.

    Raises ValueError for a term that the loss does not have, for a weight that is not a finite number of at least 0,
    and when no term is left.
    """
    weights = {} if weights is None else weights
    if not isinstance(weights, Mapping):
        raise ValueError(f"weights {weights!r} is not a mapping; write it as {dict(default)}")
    for term, weight in weights.items():
        if term not in default:
            raise ValueError(f"weights: unknown term {term!r}; allowed: {', '.join(default)}")
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or weight < 0.0:
            raise ValueError(f"weights.{term} is {weight!r}; allowed: a finite number of at least 0 (0 = term off)")
    merged = {term: float(weights.get(term, weight)) for term, weight in default.items()}
    if not any(merged.values()):
        raise ValueError(f"weights are all 0; set at least one of {', '.join(default)} above 0")
    return merged
