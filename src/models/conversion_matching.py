"""Renaming of public weights by tables, with every mismatch listed; see conversion_names.py for the tables."""

import math
import re
from collections import defaultdict
from typing import NamedTuple

import numpy as np
from mindspore import nn
from mindspore.nn.utils import no_init_parameters

from src.models.backbones.vit import PATCH as VIT_PATCH
from src.models.conversion_names import NORM_PARAMETERS, SOURCES


class Converted(NamedTuple):
    """Weights by our name, as in Segmentor, and what became of the source.

    dropped: names there that were left out on purpose. grid: of the position embeddings. rearranged: names here whose
    numbers lie in another order or shape than there. missing, unexpected: what did not fit, where that is tolerated.
    share: of the numbers of our network that the source gives.
    """

    weights: dict[str, np.ndarray]
    dropped: tuple[str, ...] = ()
    grid: tuple[int, int] | None = None
    rearranged: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    share: float = 1.0


def expected_parameters(prefix: str, network: nn.Cell) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters, running statistics included, by their name in a Segmentor."""
    return {f"{prefix}.{name}": tuple(p.shape) for name, p in network.parameters_and_names()}


def match(
    weights: dict[str, np.ndarray], rules: list[tuple[str, str, dict[str, str]]], expected: dict[str, tuple[int, ...]],
    least: float,
) -> Converted:  # fmt: skip
    """Weights renamed by the rules (prefix there, prefix here, module table).

    least: share of the `expected` numbers that must result; at 1 the names on both sides must match exactly.
    Raises ValueError that lists everything that does not fit; two names there for one here are never tolerated.
    """
    unexpected, origins, misshapen, result = [], defaultdict(list), [], {}
    for name, value in weights.items():
        ours = rename(name, rules)
        if ours not in expected:
            unexpected.append(f"{name} (would be {ours})" if ours else name)
            continue
        origins[ours].append(name)
        shape = public_shape(ours, expected[ours])
        if value.shape == shape:
            result[ours] = np.ascontiguousarray(value, np.float32).reshape(expected[ours])
        else:
            misshapen.append(f"{name}: {value.shape}, need {shape} for {ours}")
    doubled = [f"{ours}: {', '.join(names)}" for ours, names in origins.items() if len(names) > 1]
    missing = [f"{name} {shape}" for name, shape in expected.items() if name not in origins]
    share = sum(map(np.size, result.values())) / sum(math.prod(shape) for shape in expected.values())
    if doubled or share < least or (least == 1 and (missing or unexpected or misshapen)):
        problems = {"missing": missing, "unexpected": unexpected, "doubly mapped": doubled, "wrong shape": misshapen}
        raise_problems(problems, share, least)
    absent = tuple(name for name in expected if name not in result)
    reshaped = tuple(name for name in result if public_shape(name, expected[name]) != expected[name])
    return Converted(result, (), None, reshaped, absent, (*unexpected, *misshapen), share)


def public_shape(ours: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape at the source of our parameter: two of our matrix products are convolutions there."""
    if ours == "backbone.patch_embed.proj.weight":
        return shape[0], 3, VIT_PATCH, VIT_PATCH
    return (*shape, 1, 1) if re.fullmatch(r"head\.attentions\.\d+\.proj\.weight", ours) else shape


def raise_problems(problems: dict[str, list[str]], share: float, least: float) -> None:
    """Raises one ValueError with every problem."""
    lines = [f"{kind} ({len(names)}):\n  " + "\n  ".join(names) for kind, names in problems.items() if names]
    raise ValueError(
        f"the weights do not match the network, nothing was converted: {share:.1%} of its numbers were found, "
        f"{least:.1%} are wanted\n" + "\n".join(lines)
    )


def rename(name: str, rules: list[tuple[str, str, dict[str, str]]]) -> str | None:
    """Our name of a public parameter; None when no rule is for it."""
    for theirs, ours, table in rules:
        if not name.startswith(theirs):
            continue
        module, _, parameter = name.removeprefix(theirs).rpartition(".")
        for pattern, target in table.items():
            found = re.fullmatch(re.escape(pattern).replace(r"\#", r"(\d+)"), module)
            if found:
                return ours + fill(target, found.groups(), parameter)
    return None


def fill(target: str, indices: tuple[str, ...], parameter: str) -> str:
    """`ghosts.+.#.cheap`, ("1", "0"), "weight" -> "ghosts.2.0.cheap.weight"."""
    numbers = iter(indices)
    module = re.sub("[#+]", lambda mark: str(int(next(numbers)) + (mark[0] == "+")), target)
    if re.match(r".*norm|bn", module.rsplit(".", 1)[-1]):
        parameter = NORM_PARAMETERS.get(parameter, parameter)
    return f"{module}.{parameter}" if module else parameter


def dimensions(weights: dict[str, np.ndarray], *names: str) -> list[tuple[int, ...]]:
    """Shapes of the named weights, which tell the sizes of a network.

    Raises ValueError that lists the names that are absent, or have fewer than two axes.
    """
    poor = [name for name in names if name not in weights or weights[name].ndim < 2]
    if poor:
        raise ValueError(
            f"cannot tell the sizes of the network: {', '.join(poor)} not in the file, or with fewer than two axes; "
            f"is this the right source ({', '.join(SOURCES)})?"
        )
    return [weights[name].shape for name in names]


def count(weights: dict[str, np.ndarray], pattern: str) -> int:
    """One more than the highest index in the group of `pattern` at the start of a name; 0 without any."""
    return max((int(found[1]) + 1 for name in weights if (found := re.match(pattern, name))), default=0)


def build(network: type, *args, **kwargs) -> nn.Cell:
    """A network without initial values; ValueError says when no network has the sizes that the file shows."""
    try:
        with no_init_parameters():
            return network(*args, **kwargs)
    except ValueError as error:
        raise ValueError(f"the shapes in the file belong to no network of this kind: {error}") from error
