"""YAML with line numbers: plain values, where each of them stands, and what is said of those of a wrong kind."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml

Where = tuple[str | int, ...]
"""Keys and positions from the top of a file to a value."""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `1e-3` is a number, as it is to jsonargparse."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)


@dataclass(frozen=True)
class Source:
    """A YAML file that was read.

    Attributes:
        path: the file.
        values: its content.
        lines: line, from 1, of every key and list item.
        text: the file's text.
    """

    path: Path
    values: Any
    lines: dict[Where, int] = field(default_factory=dict)
    text: str = ""

    def line(self, where: Where) -> int:
        """The line of a value, or of the nearest thing around it."""
        while where and where not in self.lines:
            where = where[:-1]
        return self.lines.get(where, 1)

    def with_value(self, key: str, value: str) -> str:
        """The text with another string for a key at the top; all else, comments too, stays as it is."""
        node = yaml.compose(self.text, Loader=_Loader)
        assert isinstance(node, yaml.MappingNode)
        old = next(inner for name, inner in node.value if name.value == key)
        return self.text[: old.start_mark.index] + json.dumps(value) + self.text[old.end_mark.index :]

    def fail(self, where: Where, message: str) -> NoReturn:
        """Raises a ValueError that starts with file and line."""
        raise ValueError(f"{self.path}:{self.line(where)}: {message}")

    def check_keys(self, where: Where, given: Iterable[Any], known: Iterable[str]) -> None:
        """Raises a ValueError that names the first unknown key, its line and what was perhaps meant."""
        known = list(known)
        for key in given:
            if key not in known:
                near = get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}."
                self.fail((*where, key), f"unknown key {key!r}; {hint}")


def read_yaml(path: Path) -> Source:
    """Reads a file.

    Raises:
        ValueError: with the line, if it is missing, no YAML, or states a key twice.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file; name a YAML file.")
    try:
        text = path.read_text(encoding="utf-8")
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            source = Source(path, None)
            if node is not None:
                _mark(node, (), source)
                values = loader.construct_document(node)
                source = Source(path, values, source.lines, text)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise ValueError(f"{path}:{line}: no YAML: {getattr(error, 'problem', error)}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:1: no text in UTF-8 ({error.reason}); name a YAML file.") from error
    return source


def _mark(node: yaml.Node, where: Where, source: Source) -> None:
    """Notes the lines of a node's members, and refuses keys that are stated twice."""
    if isinstance(node, yaml.MappingNode):
        seen: set[Hashable] = set()
        for key, value in node.value:
            name: str | int = key.value
            if key.tag == "tag:yaml.org,2002:int":
                name = int(key.value)
            line = key.start_mark.line + 1
            if name in seen:
                raise ValueError(f"{source.path}:{line}: {name!r} is stated twice; leave one.")
            seen.add(name)
            source.lines[(*where, name)] = line
            _mark(value, (*where, name), source)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            source.lines[(*where, index)] = item.start_mark.line + 1
            _mark(item, (*where, index), source)


def mapping(source: Source, where: Where, value: Any) -> dict[Any, Any]:
    """The value, which must be a mapping."""
    if not isinstance(value, dict):
        name = ".".join(map(str, where))
        source.fail(where, f"{name} ({value!r}) must be a mapping of names; write `name: ...` below it.")
    return dict(value)


def number(source: Source, values: dict[str, Any], key: str, default: float, where: Where = ()) -> float:
    """The number of a key."""
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        source.fail((*where, key), f"{key} ({value!r}) must be a number; change it.")
    return float(value)


def flag(source: Source, values: dict[str, Any], key: str, default: bool) -> bool:
    """The yes or no of a key."""
    value = values.get(key, default)
    if not isinstance(value, bool):
        source.fail((key,), f"{key} ({value!r}) must be true or false; change it.")
    return value


def one_of(source: Source, values: dict[str, Any], key: str, default: str, known: tuple[str, ...]) -> str:
    """The word of a key, one of those known."""
    value = values.get(key, default)
    if value not in known:
        source.fail((key,), f"{key} ({value!r}) must be one of {', '.join(known)}; change it.")
    return str(value)


def whole(value: object) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)
