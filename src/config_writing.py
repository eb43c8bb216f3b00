"""A config's values as YAML 1.2 text, if wanted with the source of each value beside it."""

import io
from collections.abc import Iterator, Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

COMMENT_COLUMN = 40  # where comments start, unless a value reaches further


class _Representer(RoundTripRepresenter):
    """Writes null as `null`; the default is nothing at all, which reads like a forgotten value."""

    def represent_none(self, data: None) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(type(None), _Representer.represent_none)


def to_yaml(values: dict, comments: Mapping[str, str]) -> str:
    """Nested dicts, lists, tuples and scalars as YAML.

    comments: text by dotted key, written behind that key's value. Tuples and lists become one-line lists.
    """
    yaml = YAML(typ="rt", pure=True)
    yaml.Representer = _Representer
    yaml.width = 100_000  # a folded line would lose its comment
    stream = io.StringIO()
    yaml.dump(_commented(values, (), comments), stream)
    return stream.getvalue()


def leaves(value: Any, keys: tuple = ()) -> Iterator[tuple]:
    """The keys that lead to everything that is not a filled mapping."""
    if not isinstance(value, dict) or not value:
        yield keys
        return
    for key, child in value.items():
        yield from leaves(child, (*keys, key))


def dotted(keys: tuple) -> str:
    """`("optimizer", "lr")` as `optimizer.lr`."""
    return ".".join(str(key) for key in keys)


def _commented(value: Any, keys: tuple, comments: Mapping[str, str]) -> Any:
    if isinstance(value, list | tuple):
        items = CommentedSeq(_commented(item, keys, {}) for item in value)
        items.fa.set_flow_style()
        return items
    if not isinstance(value, dict):
        return value
    mapping = CommentedMap()
    for key, child in value.items():
        path = (*keys, key)
        mapping[key] = _commented(child, path, comments)
        if dotted(path) in comments:
            mapping.yaml_add_eol_comment(comments[dotted(path)], key=key, column=COMMENT_COLUMN)
    return mapping
