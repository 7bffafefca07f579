"""One pass over the rows of a source: every value is checked, and what is broken is refused, or left out and counted."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunus.data.columns import COLUMNS, WHERE, Labels, MisfitError
from prunus.data.images import BrokenImage, look_at
from prunus.errors import PrunusError
from prunus.progress import track

if TYPE_CHECKING:
    from prunus.data.source import Data, Found

REMEMBERED = 1 << 18
"""Image files whose looks are remembered while rows are read: several rows may share one."""
SHOWN = 3
"""Skipped rows that are told of."""


class Reading:
    """One pass over the rows of a source."""

    def __init__(self, data: Data):
        self.data, self.labels = data, Labels(data.classes())
        self.total = self.written = self.skipped = 0
        self.examples: list[str] = []
        self.numbers: list[int | None] = []
        """Of the classes of the rows that were written."""
        self.found: dict[str, None] = {}
        """Columns of the source."""
        self.columns: set[str] = set()
        """Fixed columns that have a value in any row."""
        self.broken: dict[str, list[int] | None] = {}
        """Files of images for which rows were skipped, and their states."""
        self._ids: dict[str, str] = {}
        self._looks: dict[str, tuple[int, int] | BrokenImage] = {}
        self._own_name = {name: data.columns.get(name, name) for name in COLUMNS}

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows that are whole, in fixed columns.

        Raises:
            PrunusError: one is not, and none is to be skipped; or none is left.
        """
        for found in track(self._found(), f"reading {self.data.title}"):
            if self.written == self.data.limit:
                break
            self.found.update(dict.fromkeys(found.values))
            if any(str(found.values.get(name)) != str(value) for name, value in self.data.only.items()):
                continue
            self.total += 1
            try:
                row = self._row(found)
            except PrunusError as error:
                if self.data.on_broken == "refuse":
                    raise
                self.skipped += 1
                if len(self.examples) < SHOWN:
                    self.examples.append(str(error))
                continue
            self.columns.update(name for name, value in row.items() if value is not None)
            self.numbers.append(row["label"])
            self.written += 1
            yield row
        self._refuse_nothing()

    def _found(self) -> Iterator[Found]:
        """What the layout finds, or an error where files do not hold what it expects."""
        try:
            yield from self.data.rows()
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            if isinstance(error, PrunusError):
                raise
            raise PrunusError(
                "data",
                self.data.title,
                f"it is not laid out as {self.data.layout} is ({type(error).__name__}: {error})",
            ) from error

    def _row(self, found: Found) -> dict[str, Any]:
        row: dict[str, Any] = {WHERE: found.where}
        for name, column in COLUMNS.items():
            own = self._own_name[name]
            value = None if own is None else found.values.get(own)
            row[name] = None if value is None else self._value(found, name, value, column.read)
        self._check_images(found, row)
        if row["question_id"] is not None:
            first = self._ids.setdefault(row["question_id"], found.where)
            if first != found.where:
                raise PrunusError(f"{found.where}: question_id", row["question_id"], f"it is that of {first}, too")
        if row["label"] is not None:  # last: a row that is skipped brings no class along
            row["label"] = self._value(found, "label", row["label"], lambda label, _: self.labels.number(label))
        return row

    def _value(self, found: Found, name: str, value: Any, read: Callable[[Any, Path], Any]) -> Any:
        try:
            return read(value, found.folder)
        except MisfitError as error:
            own = self._own_name[name]
            remedy = f"{error}; if the column is not meant, say so: columns: {{{name}: null}}" if own == name else error
            raise PrunusError(f"{found.where}: {own}", value, str(remedy)) from None

    def _check_images(self, found: Found, row: Mapping[str, Any]) -> None:
        sizes = {name: self._size(image, f"{found.where}: {name}") for name, image in images_of(row)}
        image, mask = sizes.get("image"), sizes.get("mask")
        if (
            image and mask and mask not in (image, image[::-1])
        ):  # a camera that was turned says so, and its mask does not
            raise PrunusError(
                f"{found.where}: mask", mask, f"its image has {image[0]} × {image[1]} pixels; give a mask of that size"
            )

    def _size(self, image: Mapping[str, Any], where: str) -> tuple[int, int]:
        """(width, height) of an image, whose file is looked at once."""
        path = image["path"] if image["bytes"] is None else None
        look = self._looks.get(path) if path is not None else None
        if look is None:
            try:
                look = look_at(image, where, whole=self.data.on_broken == "skip")
            except BrokenImage as error:
                look = error
            if path is not None and len(self._looks) < REMEMBERED:
                self._looks[path] = look
        if isinstance(look, BrokenImage):
            if path is not None:
                self.broken[path] = image_state(path)
            raise look
        return look

    def _refuse_nothing(self) -> None:
        named = {f"columns.{name}": own for name, own in self.data.columns.items() if own is not None}
        for field, own in {**named, **{f"only.{name}": name for name in self.data.only}}.items():
            if own not in self.found and self.found:
                near = difflib.get_close_matches(own, self.found, n=1)
                hint = f"did you mean {near[0]}? There are" if near else "there are"
                raise PrunusError(field, own, f"{self.data.title} has no such column; {hint} {', '.join(self.found)}")
        if not self.written:
            why = "there are no rows in it"
            if self.found:
                why = (
                    f"no row has {self.data.only}"
                    if not self.examples
                    else f"every row is broken, such as {self.examples[0]}"
                )
            raise PrunusError("data", self.data.title, why)

    def about(self) -> dict[str, Any]:
        """What is written beside the rows."""
        return {
            "rows": self.written, "skipped": self.skipped, "examples": self.examples, "broken": self.broken, "names": self.labels.order,
            "columns": sorted(self.columns - {WHERE}), "found": list(self.found),
        }  # fmt: skip


def images_of(row: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(column, image) of a row."""
    for name in ("image", "images", "mask"):
        for image in [row[name]] if isinstance(row.get(name), dict) else row.get(name) or ():
            yield name, image


def image_state(path: str) -> list[int] | None:
    """Size and time of a file, by which it is seen that it was mended; None where there is none."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]
