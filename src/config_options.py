"""Checks constructor arguments that come from the config: inside model.backbone, model.head, loss and data.options.

What is allowed is read off the signature of the builder, a class or a function, so that it is written down once.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from src.config_loading import join_problems, show

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def construct(place: str, builder: Callable, options: Mapping[str, Any], *args: Any) -> Any:
    """`builder(*args, **options)` after `check_options`; a ValueError that the builder raises names the place, too."""
    checked = check_options(place, builder, options, len(args))
    try:
        return builder(*args, **checked)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{place}: {error}") from error


def check_options(place: str, builder: Callable, options: Mapping[str, Any], positional: int) -> dict[str, Any]:
    """The options with lists as tuples, at every depth, once they fit the builder.

    Types are those of the annotations and strict: an int is a float, a bool is no int, null only where None is allowed,
    and no number is infinite or none at all.
    An argument without annotation takes everything.

    Args:
        place: where the options stand, such as "model.head (ecenet)", for the message.
        builder: class or function. Of a function with **kwargs, the optional arguments of the class that it says it
            returns are allowed, too; the class's required ones are the function's to give.
        options: keyword arguments by name.
        positional: number of the builder's first parameters that do not come from the config.

    Raises ValueError that lists every unknown option, missing argument and wrong type.
    """
    known = _parameters(builder, positional)
    values = {name: _tuples(value) for name, value in options.items()}
    problems = [
        f"{name} is {show(options[name])}, wanted {_describe(known[name].annotation)}{_finite(value)}"
        for name, value in values.items()
        if name in known and not _fits(value, known[name].annotation)
    ]
    problems += [
        f"missing argument {name!r}, wanted {_describe(parameter.annotation)}"
        for name, parameter in known.items()
        if parameter.default is parameter.empty and name not in values
    ]
    problems += [_unexpected(name, known) for name in values if name not in known]
    if problems:
        raise ValueError(join_problems([f"{place}: {problem}" for problem in problems], "the options"))
    return values


def _parameters(builder: Callable, positional: int) -> dict[str, inspect.Parameter]:
    """The parameters that options may set, by name."""
    signature = inspect.signature(builder, eval_str=True)
    own = _named(signature, positional)
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        return own
    forwarded = _named(inspect.signature(signature.return_annotation, eval_str=True), positional)
    for name, parameter in own.items():
        if parameter.annotation is parameter.empty and name in forwarded:
            own[name] = parameter.replace(annotation=forwarded[name].annotation)
    return own | {name: p for name, p in forwarded.items() if name not in own and p.default is not p.empty}


def _named(signature: inspect.Signature, positional: int) -> dict[str, inspect.Parameter]:
    named = [parameter for parameter in signature.parameters.values() if parameter.kind in NAMED]
    return {parameter.name: parameter for parameter in named[positional:]}


def _tuples(value: Any) -> Any:
    """YAML has lists only, and constructors take tuples."""
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


def _fits(value: Any, annotation: Any) -> bool:
    if annotation is inspect.Parameter.empty:
        return True
    try:
        TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)
    except ValidationError:
        return False
    return True


def _finite(value: Any) -> str:
    """What to add where a number is at fault: inf or nan, at any depth."""
    if isinstance(value, tuple | dict):
        parts = value.values() if isinstance(value, dict) else value
        return next((text for text in map(_finite, parts) if text), "")
    return ", finite" if isinstance(value, float) and not math.isfinite(value) else ""


def _describe(annotation: Any) -> str:
    """A type in a config user's words: `bool`, `int or null`, `[int, ...]`."""
    if annotation is inspect.Parameter.empty:
        return "any value"
    text = inspect.formatannotation(annotation)
    return text.replace("tuple[", "[").replace(" | ", " or ").replace("None", "null")


def _unexpected(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unexpected argument {name!r}{hint} It takes {', '.join(known) or 'no arguments'}"
