"""Layout `imagefolder`: a folder of images, with a table of what is said about them or a folder for each class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from prunus.data.cells import SPOKEN, from_cells
from prunus.data.columns import COLUMNS
from prunus.data.files import parquet_classes, rows_of
from prunus.data.images import endings
from prunus.data.source import Data, Found, given_path
from prunus.errors import PrunusError

SPLITS = frozenset(("train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"))
"""What folders of splits are called."""
TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


class ImageFolder(Data):
    """A folder with `metadata.jsonl` (or .csv, .parquet), which names images by `file_name`; or with a folder for each class, named after
    it; or with images alone. Images beside the folders of classes have no label.
    """

    layout: Literal["imagefolder"] = "imagefolder"
    folder: str
    """The folder, of one split."""

    @cached_property
    def _place(self) -> Path:
        place = given_path("folder", self.folder)
        if not place.is_dir():
            raise PrunusError("folder", self.folder, "it is a file; name the folder that holds the images")
        return place

    @cached_property
    def _table(self) -> Path | None:
        return next((self._place / name for name in TABLES if (self._place / name).is_file()), None)

    def inputs(self) -> list[Path]:
        return [self._table] if self._table else [self._place, *folders_below(self._place)]

    @property
    def title(self) -> str:
        return self.folder

    def classes(self) -> Sequence[str] | None:
        if self._table:
            label = self.columns.get("label", "label")
            return parquet_classes(self._table, label) if label and self._table.suffix == ".parquet" else None
        names = [folder.name for folder in self._classes]
        if len(names) > 1 and SPLITS.issuperset(name.lower() for name in names):
            raise PrunusError(
                "folder", self.folder, f"{', '.join(names)} are splits and no classes; name the folder of one of them"
            )
        return names or None

    @cached_property
    def _classes(self) -> list[Path]:
        return sorted(folder for folder in self._place.iterdir() if folder.is_dir() and not folder.name.startswith("."))

    def rows(self) -> Iterator[Found]:
        if self._table is None:
            yield from class_rows(self._place)
            return
        named = {"file_name": "image", "file_names": "images", "mask_file_name": "mask"}
        wanted = {*named, *self.only, *(self.columns.get(name, name) or name for name in COLUMNS)}
        for where, values in rows_of(self._table, wanted):
            read: dict[str, Any] = {
                **values,
                **{own: values[name] for name, own in named.items() if values.get(name) is not None},
            }
            if self._table.suffix in SPOKEN:
                read = from_cells(where, read, lambda name: self.columns.get(name, name))
            yield Found(where, self._place, read)


def class_rows(place: Path) -> Iterator[Found]:
    """The images of a folder with a folder for each class; those that lie beside these have no label.

    Raises:
        PrunusError: there are none.
    """
    images = images_below(place)
    if not images:
        raise PrunusError(
            "folder", str(place), f"no picture is below it; their files end in {', '.join(sorted(endings()))}"
        )
    for path in images:
        inside = path.relative_to(place).parts
        label = {"label": inside[0]} if len(inside) > 1 else {}
        if not inside[0].startswith(".") or len(inside) == 1:
            yield Found(str(path), place, {"image": str(path.absolute()), **label})


def images_below(folder: Path) -> list[Path]:
    """Files below a folder whose ending is that of an image, sorted."""
    known = endings()
    paths = [Path(inside) / name for inside, _, names in os.walk(folder, followlinks=True) for name in names]
    return sorted(path for path in paths if path.suffix.lower() in known and not path.name.startswith("."))


def folders_below(folder: Path) -> list[Path]:
    """Folders below a folder, sorted."""
    return sorted(Path(inside) / name for inside, names, _ in os.walk(folder, followlinks=True) for name in names)
