"""One pass over the rows of a source: every value is checked, and what is broken is refused, or left out and counted."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunus.data.columns import COLUMNS, WHERE, Labels, MisfitError
from prunus.data.images import BrokenImage, classes_in, look_at, open_mask, shown
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
        self.pictures: list[int] = []
        """Of the rows that were written the first that shows the same picture, where they have captions."""
        self.mask_classes: dict[int, str] = {}
        """Classes that masks hold, and where each was met first."""
        self._ids: dict[str, str] = {}
        self._first: dict[bytes, int] = {}
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
            if any(not _alike(found.values.get(name), value) for name, value in self.data.only.items()):
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
            self.pictures.append(self._same_picture(row))
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
        try:
            for name, image in images_of(row):
                if name != "mask":
                    self._look(image, f"{found.where}: {name}")
            if row["mask"] is not None:
                self._check_mask(found, row["image"], row["mask"])
        except PrunusError:
            paths = (image["path"] for _, image in images_of(row) if image["bytes"] is None)
            self.broken.update({path: image_state(path) for path in paths})
            raise

    def _check_mask(self, found: Found, image: Any, mask: Any) -> None:
        """Refuses a mask that is none, and one that lies on its picture otherwise than the picture is seen."""
        field = f"{found.where}: mask"
        opened = open_mask(mask, field, self.data.first_class)
        if image is not None:
            seen = shown(image, f"{found.where}: image")
            if opened.size != seen.size:
                turned = ", turned as its EXIF entry says" if seen.turned else ""
                raise PrunusError(
                    field, opened.size, f"its image has {seen.size[0]} × {seen.size[1]} pixels{turned}; give a mask of that size"
                )  # fmt: skip
            if seen.turned and seen.size == seen.stored and not shown(mask).turned:
                raise PrunusError(
                    field, opened.size, "its image is turned or mirrored by an EXIF entry, and nothing says whether the mask is; save the image "
                    "as it is seen, without the entry",
                )  # fmt: skip
        for one in classes_in(opened):
            self.mask_classes.setdefault(one, found.where)

    def _same_picture(self, row: Mapping[str, Any]) -> int:
        """The number of the first row that shows the same picture, by its file or its bytes; the row's own where it has no captions."""
        image = row["image"]
        if image is None or row["captions"] is None:
            return self.written
        same = image["path"].encode() if image["bytes"] is None else image["bytes"]
        return self._first.setdefault(blake2b(same, digest_size=16).digest(), self.written)

    def _look(self, image: Mapping[str, Any], where: str) -> None:
        """Refuses an image that cannot be read; each file is looked at once."""
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
            raise look

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
            "columns": sorted(self.columns - {WHERE}), "found": list(self.found), "mask_classes": sorted(self.mask_classes.items()),
            "repeated": sum(first < row for row, first in enumerate(self.pictures)),
        }  # fmt: skip


def _alike(found: Any, wanted: str | int | bool) -> bool:
    """Whether a value is the wanted one; CSV writes numbers and truths as text."""
    if isinstance(wanted, bool):
        return str(found).strip().lower() == str(wanted).lower()
    return str(found) == str(wanted)


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
