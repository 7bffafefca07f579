"""What every source of data is: where rows come from, and what becomes of those that are broken."""

from __future__ import annotations

import difflib
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from prunus.data.columns import COLUMNS
from prunus.data.store import Kept, Needs, keep
from prunus.errors import PrunusError
from prunus.typed import Steps, Typed

if TYPE_CHECKING:
    import datasets

    from prunus.data.pictures import Pictures


@dataclass(frozen=True)
class Found:
    """A row as it was found."""

    where: str
    """Its file and its place there, for errors."""
    folder: Path
    """Where relative paths start from."""
    values: Mapping[str, Any]
    """By the names that they have there."""


class Data(Typed):
    """Base of the layouts: a data set, as rows of fixed columns. One of your own needs a name, `inputs` and `rows`.

    Rows are read once, checked, and kept in the cache as an Arrow file, which is mapped into memory; images that have files of
    their own stay where they are.
    """

    layout: str
    """The name by which recipes find it."""
    columns: dict[str, str | None] = Field(default_factory=dict)
    """Fixed name → the name in the files; null leaves a column out."""
    only: dict[str, str | int | bool] = Field(default_factory=dict)
    """Name in the files → the value that rows are taken with, such as {split: train}."""
    on_broken: Literal["refuse", "skip"] = "refuse"
    """What happens to a row that has a broken image or lacks something: it is an error, or it is left out and counted."""
    limit: Steps | None = None
    """Rows that are taken, from the first; None takes all."""
    first_class: int = Field(default=0, ge=0, le=65535)
    """What masks give the first class; pixels below it are not counted."""

    @field_validator("columns")
    @classmethod
    def _columns_are_known(cls, columns: dict[str, str | None]) -> dict[str, str | None]:
        for name, own in columns.items():
            if name not in COLUMNS:
                near = difflib.get_close_matches(name, COLUMNS, n=1)
                hint = f"did you mean {near[0]}? There are" if near else "the fixed names are"
                raise PrunusError(
                    name, own, f"{hint} {', '.join(COLUMNS)}; write the fixed name first, and then your own"
                )
        return columns

    @abstractmethod
    def inputs(self) -> Sequence[Path]:
        """The files and folders that rows are read from; once one of them changes, the data set is read anew.

        Raises:
            PrunusError: one is missing.
        """

    @abstractmethod
    def rows(self) -> Iterator[Found]:
        """The rows, in their order. They may hold more than the fixed columns.

        Raises:
            PrunusError: a file cannot be read.
        """

    def classes(self) -> Sequence[str] | None:
        """Names of the classes by their numbers; None where they are not known before the rows are read."""
        return None

    def version(self) -> str | None:
        """What a place that is none of `inputs` has now, such as a commit; None where nothing says it. Rows that are kept of another version
        are read anew.
        """
        return None

    def mask_classes(self) -> Sequence[str] | None:
        """Names of the classes of masks by their numbers, the first being 0; None where nothing says them."""
        return None

    @property
    def title(self) -> str:
        """What messages call it."""
        files = [str(file) for file in self.inputs()]
        return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more" if files else self.layout

    @cached_property
    def kept(self) -> Kept:
        """The rows as they lie in the cache, put there if need be."""
        return keep(self)

    def read(self, needs: Needs = ()) -> datasets.Dataset:
        """The rows, mapped into memory, with the fixed columns that are there and `where`, the file and row of each. Nothing is decoded:
        images are mappings with `bytes` and `path`, for `open_image`.

        Args:
            needs: columns that each row must have, or several of which it must have one. Rows that lack one are left out if `on_broken`
                says so.

        Raises:
            PrunusError: a file, a column or a value is missing or wrong; the error names it.
        """
        return self.kept.having(needs)

    def pictures(self, needs: Needs = ("image", "captions")) -> datasets.Dataset | Pictures:
        """As `read`; rows of the same picture, by its file or its bytes, are one row, with the captions of all of them.

        Raises:
            PrunusError: see there.
        """
        return self.kept.of_pictures(needs)

    def check(self, needs: Needs) -> None:
        """As `read`; and every image is still there.

        Raises:
            PrunusError: see above.
        """
        self.read(needs)
        self.kept.check_images()

    def class_names(self) -> list[str] | None:
        """Names of the classes by the numbers in `label`; None if they have none."""
        return self.kept.names


def given_path(field: str, path: str) -> Path:
    """A file or folder that is there, `~` expanded.

    Raises:
        PrunusError: it is not.
    """
    try:
        place = Path(path).expanduser()
        there = os.path.lexists(place)
    except (RuntimeError, ValueError):
        raise PrunusError(field, path, "it is no path of a file") from None
    if not there or not place.exists():
        raise PrunusError(field, path, "there is no such file or folder")
    return place


def in_full(entry: object) -> object:
    """The short form of a source in full: a text is the file of a table."""
    return {"layout": "table", "files": entry} if isinstance(entry, str) else entry
