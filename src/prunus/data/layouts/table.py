"""Layout `table`: rows of Parquet, JSON, JSON lines or CSV files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from prunus.data.cells import SPOKEN, from_cells
from prunus.data.columns import COLUMNS
from prunus.data.files import files_of, parquet_classes, rows_of
from prunus.data.source import Data, Found, given_path
from prunus.errors import PrunusError, shown


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
        label = self.own_name("label")
        if label is None:
            return None
        named = {str(file): parquet_classes(file, label) for file in self._paths if file.suffix.lower() == ".parquet"}
        first = next(iter(named.values()), None)
        other = next((file for file, names in named.items() if names != first), None)
        if other is not None or (first is not None and len(named) < len(self._paths)):
            raise PrunusError(
                "files", other or self.files, f"not every file numbers the classes as {next(iter(named))} does ({shown(first)}); "
                "a number would be one class here and another there. Write all files with the same classes",
            )  # fmt: skip
        return first

    def rows(self) -> Iterator[Found]:
        wanted = {name for name in map(self.own_name, COLUMNS) if name is not None} | set(self.only)
        root = None if self.root is None else given_path("root", self.root)
        for file in self._paths:
            for where, values in rows_of(file, wanted):
                read = from_cells(where, values, self.own_name) if file.suffix.lower() in SPOKEN else values
                yield Found(where, root or file.parent, read)
