"""Cells of CSV: text, as which lists and numbers of classes are written, too."""

from __future__ import annotations

import ast
import io
import itertools
import json
import re
import tokenize
from collections.abc import Callable, Mapping
from typing import Any

from prunus.data.columns import COLUMNS
from prunus.errors import PrunusError

SPOKEN = (".csv", ".tsv")
"""Endings of files that hold nothing but text."""


def from_cells(where: str, values: Mapping[str, Any], own_name: Callable[[str], str | None]) -> dict[str, Any]:
    """A row whose lists and numbers of classes are such.

    Args:
        where: file and line, for errors.
        values: cells by column.
        own_name: what the file calls a fixed column; None for one that is left out.

    Raises:
        PrunusError: a cell holds a damaged list.
    """
    read = dict(values)
    for name, column in COLUMNS.items():
        own = own_name(name)
        cell = read.get(own) if own else None
        if own and isinstance(cell, str) and name == "label":
            read[own] = _label(cell.strip())
        elif own and isinstance(cell, str) and column.kind.startswith("list") and LIST.match(cell):
            read[own] = _list(f"{where}: {own}", cell)
    return read


LIST = re.compile(r"""\s*(\[|\(\s*['"])""")
"""How a cell begins that may hold a list."""
NUMBER = re.compile(r"-?[0-9]+(\.0+)?")
"""The number of a class, also as pandas writes it where another row has none."""
OF_TEXTS = re.compile(r"""\s*[\[(]\s*['"{].*[\])]\s*\Z""", re.DOTALL)
"""What cannot be meant otherwise."""


def _label(cell: str) -> int | bool | str:
    if cell.lower() in ("true", "false"):
        return cell.lower() == "true"
    return int(cell.partition(".")[0]) if NUMBER.fullmatch(cell) and len(cell) < 9 else cell


def _list(where: str, cell: str) -> Any:
    """What a cell holds, as JSON or Python writes it; the cell itself where it is a text in brackets.

    Raises:
        PrunusError: it is a list, and damaged.
    """
    for read in (json.loads, _of_python):
        try:
            return read(cell)
        except (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError):
            continue
    if OF_TEXTS.match(cell):
        raise PrunusError(where, cell, 'its list cannot be read; write one as in JSON, such as ["a cat", "an animal"]')
    return cell


def _of_python(cell: str) -> Any:
    """A list or tuple of Python's; not texts side by side, which Python would join."""
    tokens = list(tokenize.generate_tokens(io.StringIO(cell.strip()).readline))
    texts = [token.type == tokenize.STRING for token in tokens if token.type != tokenize.NL]
    if any(one and after for one, after in itertools.pairwise(texts)):
        raise ValueError("texts without a comma between them")
    found = ast.literal_eval(cell.strip())
    return list(found) if isinstance(found, tuple) else found
