"""YAML files with `_base_` and `key=value` overrides, merged into one tree whose every node knows its source."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

COMMAND_LINE = "command line"


class ConfigError(ValueError):
    """Everything that is wrong with a config, in one message."""


class _Constructor(RoundTripConstructor):
    """Round-trip constructor without dates: YAML 1.2 has none, so `name: 2024-05-01` is text."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", RoundTripConstructor.construct_yaml_str)


@dataclass(frozen=True)
class Node:
    """One key of a config.

    value: `dict[key, Node]` for a mapping, otherwise a plain Python value; lists are not merged, hence hold no nodes.
    source: `config/x.yaml:12` or `command line`.
    note: why older keys of this mapping are gone; empty where they are not.
    """

    value: Any
    source: str
    note: str = ""


def read_tree(path: Path, opened: tuple[str, ...] = ()) -> Node:
    """Reads a config file over its `_base_` files: later bases win over earlier ones, the file over all.

    path: the file; `_base_` paths are relative to the file that names them. opened: the files that led here.
    Raises ConfigError for a missing file, text that is not a YAML mapping, a wrong `_base_` or a circle of them.
    """
    label = os.path.normpath(path)
    tree = _read_file(path, label)
    base = tree.value.get("_base_", Node([], label))
    names = [base.value] if isinstance(base.value, str) else base.value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"'_base_' ({base.source}): wanted a path or a list of paths, got {show(plain(base))}")
    merged = Node({}, label)
    opened = (*opened, label)
    for name in names:
        base_path = path.parent / name
        chain = (*opened, os.path.normpath(base_path))
        if base_path.resolve() in [Path(item).resolve() for item in opened]:
            raise ConfigError(
                f"'_base_' goes in a circle ({base.source}): {' -> '.join(chain)}; remove one of these links"
            )
        if not base_path.is_file():
            raise ConfigError(
                f"'_base_' file not found ({base.source}): {chain[-1]}; the path {name!r} is taken relative to "
                f"{os.path.normpath(path.parent)}"
            )
        merged = merge(merged, read_tree(base_path, opened))
    return merge(merged, replace(tree, value={key: node for key, node in tree.value.items() if key != "_base_"}))


def read_overrides(overrides: Sequence[str]) -> Node:
    """Turns `a.b=value` texts, values read as YAML 1.2, into one tree; later ones win.

    Raises ConfigError that lists every text that is not of that form.
    """
    tree = Node({}, COMMAND_LINE)
    problems = []
    for text in overrides:
        try:
            tree = merge(tree, _read_override(text))
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(join_problems(problems, COMMAND_LINE))
    return tree


def merge(old: Node, new: Node, *, root: bool = True) -> Node:
    """Merges two trees key by key; `new` wins.

    A mapping below the root whose `name` changes replaces the old one whole, so that a ResNet never inherits a
    ViT's arguments. The root's `name` is the run's name and replaces nothing.
    """
    if not (isinstance(old.value, dict) and isinstance(new.value, dict)):
        return new
    before, after = old.value.get("name"), new.value.get("name")
    if not root and before and after and before.value != after.value:
        change = f"name changed from {show(plain(before))} to {show(plain(after))} ({after.source})"
        return replace(new, note=change)
    children = dict(old.value)
    for key, child in new.value.items():
        children[key] = merge(children[key], child, root=False) if key in children else child
    return Node(children, new.source, new.note or old.note)


def plain(node: Node) -> Any:
    """The tree as plain nested dicts."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    return node.value


def find(tree: Node, path: Sequence) -> Node | None:
    """The node at `path`, or None where no file and no override gave that key."""
    node = tree
    for key in path:
        if not isinstance(node.value, dict) or key not in node.value:
            return None
        node = node.value[key]
    return node


def show(value: Any) -> str:
    """A value for an error text, with YAML's own words for null, true and false."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else repr(value)


def join_problems(problems: Sequence[str], where: str) -> str:
    """One text for all problems: the problem itself where there is one, otherwise a list under a heading."""
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} errors in {where}:\n" + "\n".join(f"- {problem}" for problem in problems)


def _read_file(path: Path, label: str) -> Node:
    if not path.is_file():
        raise ConfigError(f"config file not found: {label}; give the path of an existing YAML file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{label} is not UTF-8 text ({error}); save it as UTF-8") from error
    parsed = _parse(text, label)
    if parsed is None:  # an empty file, or one of comments only
        return Node({}, label)
    if not isinstance(parsed, CommentedMap):
        raise ConfigError(f"{label} must hold a mapping (key: value lines), got {type(parsed).__name__}")
    return _build(parsed, label, label)


def _read_override(text: str) -> Node:
    dotted, equals, value = text.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise ConfigError(
            f"override {text!r} is not of the form key=value, such as optimizer.lr=6e-5 or data.crop_size=[64,64]"
        )
    if not value.strip():
        raise ConfigError(
            f"override {text!r} has no value; write {dotted}=null for none, {dotted}='\"\"' for empty text"
        )
    node = _build(_parse(value, f"override {text!r}"), COMMAND_LINE, None)
    for key in reversed(keys):
        node = Node({key: node}, COMMAND_LINE)
    return node


def _parse(text: str, label: str) -> Any:
    yaml = YAML(typ="rt", pure=True)
    yaml.Constructor = _Constructor
    try:
        return yaml.load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = label if mark is None else f"{label}:{mark.line + 1}"
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from error


def _build(value: Any, source: str, file: str | None) -> Node:
    """Node of a parsed value; inside a file every key's source is its own line."""
    if not isinstance(value, CommentedMap):
        return Node(_plain_value(value, source), source)
    children = {}
    for key, child in value.items():
        known_line = file is not None and key in value.lc.data  # not so for a key that came in through `<<`
        where = f"{file}:{value.lc.data[key][0] + 1}" if known_line else source
        children[_plain_value(key, where)] = _build(child, where, file)
    return Node(children, source)


def _plain_value(value: Any, source: str) -> Any:
    """Python's own type for a parsed value, because strict models take no subclasses of it for granted."""
    if isinstance(value, dict):
        return {_plain_value(key, source): _plain_value(child, source) for key, child in value.items()}
    if isinstance(value, list):
        return [_plain_value(child, source) for child in value]
    if isinstance(value, ScalarBoolean):  # an int to Python; comes from `&anchor true`
        return bool(value)
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    raise ConfigError(
        f"{source}: a value of type {type(value).__name__} is not allowed; use text, numbers, lists, mappings"
    )
