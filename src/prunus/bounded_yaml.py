"""YAML of strangers: plain data, of a bounded size and depth, and errors that name the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from prunus.errors import PrunusError, shown

TEXT_LIMIT = 256 << 10
"""Characters; the largest recipe of the project has three thousand."""
DEPTH_LIMIT = 40
NODE_LIMIT = 100_000
"""Values, once every alias stands for what it repeats."""
NUMBER_LIMIT = 60
"""Characters of a number."""


def yaml_text(path: str | Path, field: str, source: str) -> str:
    """The text of a YAML file, and hardly more of it than `read_yaml` takes; `field` and `source` name it in errors.

    Raises:
        PrunusError: it cannot be read, or is no text.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(TEXT_LIMIT + 1)
    except OSError as error:
        raise PrunusError(field, source, f"it cannot be read ({error.strerror}); give a YAML file") from None
    except ValueError:
        raise PrunusError(field, source, "it is no text in UTF-8; give a YAML file") from None


def read_yaml(text: str, field: str, source: str) -> Any:
    """The data in a YAML text: mappings, lists, strings, numbers. What an alias repeats is there as often as it is named.

    Raises:
        PrunusError: it is no YAML, names a key twice, or is too large or too deep; `field` and `source` name it.
    """
    if len(text) > TEXT_LIMIT:
        raise PrunusError(field, source, f"it has more than {TEXT_LIMIT:,} characters")
    loader = None
    try:
        loader = _Loader(text)
        return _unshared(loader.get_single_data())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}" if mark else "it"
        said = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise PrunusError(field, source, f"{line} is not YAML: {said}") from None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
        line = "it" if loader is None else f"near line {loader.line + 1} it"
        raise PrunusError(field, source, f"{line} is no plain YAML: {error}") from None


def _unshared(data: Any) -> Any:
    """The same without any part that is in two places, so that one can be changed alone; names are text."""
    if isinstance(data, dict):
        odd = next((key for key in data if not isinstance(key, str)), None)
        if odd is not None or None in data:
            raise ValueError(f"{shown(odd)} is a name, and no text; write it in quotes")
        return {key: _unshared(value) for key, value in data.items()}
    return [_unshared(value) for value in data] if isinstance(data, list) else data


class _Loader(yaml.SafeLoader):
    """Counts while it composes, before anything is built."""

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[int, int] = {}
        self._total = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if self._depth >= DEPTH_LIMIT:
            raise _refused(f"more than {DEPTH_LIMIT} levels", event)
        repeated = isinstance(event, yaml.AliasEvent)
        self._depth += 1
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        if repeated and id(node) not in self._sizes:
            raise _refused("a part that holds itself", event)
        size = self._sizes[id(node)] if repeated else _size(node, self._sizes)
        self._sizes[id(node)] = size
        self._total += size if repeated else 1
        if self._total > NODE_LIMIT:
            raise _refused(f"more than {NODE_LIMIT:,} values", event)
        if not repeated:
            _check(node)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        self.line = node.start_mark.line
        return super().construct_object(node, deep=True)

    line = 0
    """Of what is being built."""


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    if isinstance(node, yaml.MappingNode):
        return 1 + sum(sizes[id(key)] + sizes[id(value)] for key, value in node.value)
    return 1 + sum(sizes[id(item)] for item in node.value) if isinstance(node, yaml.SequenceNode) else 1


def _check(node: yaml.Node) -> None:
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice is not None:
            raise _refused(f"{twice[:50]} stands there twice", node)
    number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    if number and len(node.value) > NUMBER_LIMIT:
        raise _refused(f"a number of {len(node.value):,} characters", node)


def _refused(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)
