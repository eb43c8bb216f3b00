"""Turns pydantic's errors into texts that name key, place, allowed values and remedy."""

import difflib
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from src.config_loading import Node, find, plain, show

NEAR = 0.6  # smallest similarity of two key names, 0 to 1, at which one is offered for the other
RANGE_ERRORS = (
    "greater_than",
    "greater_than_equal",
    "less_than",
    "less_than_equal",
    "finite_number",
    "string_too_short",
)
TYPE_NAMES = {int: "int", float: "float", str: "str", bool: "true or false", NoneType: "null"}


def refuse(*problems: tuple[str, tuple[str, ...]]) -> None:
    """Raises, from inside a model validator, one error for all (text, keys concerned) pairs; nothing without any."""
    if problems:
        text = "; ".join(text for text, _ in problems)
        raise PydanticCustomError("inconsistent", "{text}", {"text": text, "problems": problems})


def require_name(value: dict[str, Any]) -> dict[str, Any]:
    """Refuses a mapping without a `name` (text): it says which backbone, head or loss is meant."""
    if "name" not in value:
        raise PydanticCustomError("missing_name", "the key 'name' is missing")
    if not isinstance(value["name"], str):
        raise PydanticCustomError("name_type", "the key 'name' must be text")
    return value


def explain(error: ValidationError, tree: Node, model: type[BaseModel], file: str) -> list[str]:
    """One text for each thing wrong; missing keys share one.

    tree: the merged config, for values and places. model: the class that was validated, for keys and wanted types.
    file: the config file, where missing keys belong.
    """
    missing, problems = [], {}  # problems: by key, because a tuple with two wrong items is one problem
    for item in error.errors():
        kind, path, rest, field = item["type"], *_locate(model, item["loc"])
        key = ".".join(path)
        if kind == "missing" and not rest:
            missing += _required_keys(field, path)
        elif kind == "missing_name":
            missing.append(f"{key}.name")
        elif kind == "inconsistent":
            for text, keys in item["ctx"]["problems"]:
                problems[text] = f"{text} ({_sources(tree, keys)})"
        elif kind in ("extra_forbidden", "invalid_key"):
            full = ".".join(str(part) for part in item["loc"])
            problems[full] = _unknown_key(full, _source(tree, item["loc"]), model)
        elif kind in RANGE_ERRORS:
            name = key + "".join(f"[{part}]" for part in rest)
            rule = item["msg"].replace("Input should be", "must be").replace("String should have", "must have")
            problems[name] = f"'{name}' {rule}, got {show(item['input'])} ({_source(tree, path)})"
        else:
            full_path = (*path, "name") if kind == "name_type" else path
            problems[".".join(full_path)] = _wrong_type(full_path, kind, tree, field)
    return [*problems.values(), *_missing_keys(missing, tree, file)]


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a model and of the models in it."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if _is_model(field.annotation):
            yield from known_keys(field.annotation, f"{prefix}{name}.")


def _locate(model: type[BaseModel], loc: tuple) -> tuple[tuple[str, ...], tuple, FieldInfo | None]:
    """Splits an error's location into the keys of declared fields and the rest inside the last one."""
    path, field = [], None
    for part in loc:
        if not _is_model(model) or part not in model.model_fields:
            break
        field = model.model_fields[part]
        model = field.annotation
        path.append(part)
    return tuple(path), loc[len(path) :], field


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _source(tree: Node, path: tuple) -> str:
    node = find(tree, path)
    return node.source if node else "default"


def _sources(tree: Node, keys: tuple[str, ...]) -> str:
    return ", ".join(f"{key}: {_source(tree, key.split('.'))}" for key in keys)


def _unknown_key(key: str, source: str, model: type[BaseModel]) -> str:
    """The last part of a key decides, wherever it belongs; among equals, the key that is nearest as a whole."""

    def nearness(candidate: str) -> tuple[float, float]:
        return (
            difflib.SequenceMatcher(None, key.rpartition(".")[2], candidate.rpartition(".")[2]).ratio(),
            difflib.SequenceMatcher(None, key, candidate).ratio(),
        )

    nearest = max(known_keys(model), key=nearness)
    if nearness(nearest)[0] < NEAR:
        section = key.rpartition(".")[0]
        siblings = [name for name in known_keys(model) if name.rpartition(".")[0] == section]
        return f"unknown config key '{key}' ({source}); known here: {', '.join(siblings)}"
    return f"unknown config key '{key}' ({source}); did you mean '{nearest}'?"


def _wrong_type(path: tuple[str, ...], kind: str, tree: Node, field: FieldInfo) -> str:
    wanted = "str" if kind == "name_type" else _describe(field.annotation)
    what = "value" if kind == "literal_error" else "type"
    node = find(tree, path)
    return f"wrong {what} for '{'.'.join(path)}' ({node.source}): wanted {wanted}, got {show(plain(node))}"


def _describe(annotation: Any) -> str:
    """A type in a config user's words: `int`, `[int, int] or null`, `one of 'CPU', 'GPU'`, `a mapping`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _describe(arguments[0])
    if origin is Literal:
        return "one of " + ", ".join(repr(argument) for argument in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_describe(argument) for argument in arguments)
    if origin is tuple:
        return "[" + ", ".join("..." if argument is Ellipsis else _describe(argument) for argument in arguments) + "]"
    if origin is dict:
        return f"a mapping with {_describe(arguments[0])} keys"
    if _is_model(annotation):
        return "a mapping"
    return TYPE_NAMES[annotation]


def _required_keys(field: FieldInfo, path: tuple[str, ...]) -> list[str]:
    if not _is_model(field.annotation):
        return [".".join(path)]
    return [
        key
        for name, child in field.annotation.model_fields.items()
        if child.is_required()
        for key in _required_keys(child, (*path, name))
    ]


def _missing_keys(keys: list[str], tree: Node, file: str) -> list[str]:
    if not keys:
        return []
    text = f"missing config keys: {', '.join(keys)}; give them in {file} or as key=value"
    sections = dict.fromkeys(key.rpartition(".")[0] for key in keys)
    notes = {section: find(tree, section.split(".")) for section in sections}
    for section, node in notes.items():
        if node and node.note:
            text += f"; '{section}' was replaced whole because its {node.note}"
    return [text]
