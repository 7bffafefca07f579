"""Layout `table`: rows of Parquet, JSON, JSON lines or CSV files."""

from __future__ import annotations

import ast
import io
import itertools
import json
import re
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from prunus.data.columns import COLUMNS
from prunus.data.files import files_of, parquet_classes, rows_of
from prunus.data.source import Data, Found, given_path
from prunus.errors import PrunusError


class Table(Data):
    """Rows of files. In CSV, a cell may hold a list, as JSON or Python writes it, such as ["a cat", "an animal"]."""

    layout: Literal["table"] = "table"
    files: str | list[str]
    """A file or a glob, or several: .parquet, .json, .jsonl, .csv, .tsv."""
    root: str | None = None
    """Folder that paths of images start from; by default that of the file they stand in."""

    @field_validator("files")
    @classmethod
    def _some(cls, files: str | list[str]) -> str | list[str]:
        if not files or not all(files):
            raise PrunusError("", files, "name a file")
        return files

    @cached_property
    def _paths(self) -> list[Path]:
        patterns = [self.files] if isinstance(self.files, str) else self.files
        return [file for pattern in patterns for file in files_of("files", pattern)]

    def inputs(self) -> list[Path]:
        return self._paths

    def own_name(self, name: str) -> str | None:
        """What the files call a fixed column; None for one that is left out."""
        return self.columns.get(name, name)

    def classes(self) -> Sequence[str] | None:
        label, first = self.own_name("label"), self._paths[0]
        return parquet_classes(first, label) if label and first.suffix.lower() == ".parquet" else None

    def rows(self) -> Iterator[Found]:
        wanted = {name for name in map(self.own_name, COLUMNS) if name is not None} | set(self.only)
        root = None if self.root is None else given_path("root", self.root)
        for file in self._paths:
            spoken = file.suffix.lower() in (".csv", ".tsv")
            for where, values in rows_of(file, wanted):
                yield Found(where, root or file.parent, self._from_cells(where, values) if spoken else values)

    def _from_cells(self, where: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Lists and numbers of classes, which CSV writes as text."""
        read = dict(values)
        for name, column in COLUMNS.items():
            own = self.own_name(name)
            cell = read.get(own) if own else None
            if own and isinstance(cell, str) and name == "label":
                read[own] = _label(cell.strip())
            elif own and isinstance(cell, str) and column.kind.startswith("list") and LIST.match(cell):
                read[own] = _list(f"{where}: {own}", cell)
        return read


LIST = re.compile(r"""\s*(\[|\(\s*['"])""")
"""How a cell begins that may hold a list."""
OF_TEXTS = re.compile(r"""\s*[\[(]\s*['"{].*[\])]\s*\Z""", re.DOTALL)
"""What cannot be meant otherwise."""


def _label(cell: str) -> int | bool | str:
    if cell.lower() in ("true", "false"):
        return cell.lower() == "true"
    return int(cell) if cell.lstrip("-").isascii() and cell.lstrip("-").isdigit() and len(cell) < 9 else cell


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
