"""Rows of any source, checked one by one and kept as an Arrow file that is mapped into memory."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from prunus.data.columns import COLUMNS, WHERE
from prunus.data.identity import identity
from prunus.data.images import BrokenImage, look_at
from prunus.data.pictures import Pictures
from prunus.data.reading import REMEMBERED, SHOWN, Reading, image_state, images_of
from prunus.errors import PrunusError, refusing
from prunus.progress import track
from prunus.storage import cache_folder, locked, new_folder, write_text

if TYPE_CHECKING:
    import datasets

    from prunus.data.source import Data

FORMAT = "prunus.data/3"
ROWS, LABELS, PICTURES, ABOUT = "rows.arrow", "labels.arrow", "pictures.arrow", "about.json"
Needs = Sequence[str | tuple[str, ...]]
"""Columns that rows must have; of several in one entry any."""
TOGETHER, HEAVY = 1000, 32 << 20
"""Rows and bytes that are written at a time."""


@dataclass(frozen=True)
class Kept:
    """A data set in the cache."""

    folder: Path
    title: str
    skips: bool
    about: dict[str, Any]

    @property
    def names(self) -> list[str] | None:
        """Of the classes, by number."""
        names: list[str] | None = self.about["names"]
        return names

    @property
    def state(self) -> list[Any]:
        """What tells states of the data set apart: all that its rows follow from."""
        return [self.folder.parent.name, self.about["version"], self.about["rows"], self.about["skipped"]]

    @property
    def mask_classes(self) -> dict[int, str]:
        """Classes that masks hold, and file and row where each was met first."""
        return dict(self.about["mask_classes"])

    @property
    def skipped(self) -> int:
        """Rows that were left out, since they are broken."""
        return int(self.about["skipped"])

    def rows(self) -> datasets.Dataset:
        """All rows that are kept."""
        import datasets

        rows = datasets.Dataset.from_file(str(self.folder / ROWS))
        rows = rows.select_columns([*(name for name in COLUMNS if name in self.about["columns"]), WHERE])
        if "label" not in self.about["columns"]:
            return rows
        kind = datasets.Value("int64") if self.names is None else datasets.ClassLabel(names=self.names)
        info = datasets.DatasetInfo(features=datasets.Features({"label": kind}))
        labels = datasets.Dataset.from_file(str(self.folder / LABELS), info=info)
        return datasets.concatenate_datasets([rows.remove_columns("label"), labels], axis=1)

    def having(self, needs: Needs) -> datasets.Dataset:
        """The rows that have these columns.

        Raises:
            PrunusError: there is no such column; or a row lacks one, and none is to be skipped.
        """
        rows, places = self._having(needs)
        return rows if len(places) == len(rows) else rows.select(places)

    def of_pictures(self, needs: Needs) -> datasets.Dataset | Pictures:
        """As `having`; rows of one picture are one, with the captions of all of them.

        Raises:
            PrunusError: see there.
        """
        import datasets

        if not self.about["repeated"]:
            return self.having(needs)
        rows, places = self._having(needs)
        first = datasets.Dataset.from_file(str(self.folder / PICTURES))[:]["first"]
        groups: dict[int, list[int]] = {}
        for place in places:
            groups.setdefault(first[place], []).append(place)
        return Pictures(rows, list(groups.values()))

    def _having(self, needs: Needs) -> tuple[datasets.Dataset, Sequence[int]]:
        """All rows, and the numbers of those that have these columns."""
        import pyarrow.compute

        rows = self.rows()
        lacking: set[int] = set()
        for names in ((need,) if isinstance(need, str) else need for need in needs):
            columns = [rows.data.column(name) for name in names if name in rows.column_names]
            if not columns:
                raise self._no_such_column(*names)
            if all(column.null_count for column in columns):
                absent = reduce(pyarrow.compute.and_, [column.is_null() for column in columns])
                places = absent.to_numpy().nonzero()[0].tolist()
                if places and not self.skips:
                    raise PrunusError(
                        f"{rows[places[0]][WHERE]}: {names[0]}", None, f"the row has no {' or '.join(names)}, and neither have "
                        f"{len(places) - 1} others; add it, or leave such rows out: on_broken: skip",
                    )  # fmt: skip
                lacking.update(places)
        if not lacking:
            return rows, range(len(rows))
        wanted = ", ".join(need if isinstance(need, str) else " or ".join(need) for need in needs)
        _say(self.title, len(lacking), len(rows), [f"{rows[min(lacking)][WHERE]} lacks one of {wanted}"])
        if len(lacking) == len(rows):
            raise PrunusError("data", self.title, f"no row has all of {wanted}")
        return rows, [place for place in range(len(rows)) if place not in lacking]

    def _no_such_column(self, name: str, *others: str) -> PrunusError:
        there: list[str] = self.about["found"]
        near = difflib.get_close_matches(name, there, n=1) or [name.rstrip("s")] * (name.rstrip("s") in there)
        other = near[0] if near else "the name it has there"
        return PrunusError(
            f"{self.title}: {' or '.join([name, *others])}", None, f"there is no such column; there are {', '.join(there)}. If one of them is meant, say so: "
            f"columns: {{{name}: {other}}}",
        )  # fmt: skip

    def check_images(self) -> None:
        """Refuses a data set whose image files have gone since it was read.

        Raises:
            BrokenImage: naming the first.
        """
        there: set[str] = set()
        for name, wheres, images in self.images():
            paths, embedded = images.field("path").to_pylist(), images.field("bytes").is_valid().to_pylist()
            for where, path, inside in zip(wheres, paths, embedded, strict=True):
                if path is not None and not inside and path not in there:
                    if not Path(path).is_file():
                        raise BrokenImage(f"{where}: {name}", path, "there is no such file any more")
                    if len(there) < REMEMBERED:
                        there.add(path)

    def damaged(self) -> Iterator[BrokenImage]:
        """What is wrong with pictures that look whole by their heads: each is decoded. Masks were when they were read."""
        there: set[str] = set()
        for name, wheres, images in track(self.images(("image", "images")), f"decoding {self.title}"):
            for where, image in zip(wheres, images, strict=True):
                held = image.as_py()
                if held is None or (held["bytes"] is None and held["path"] in there):
                    continue
                try:
                    look_at(held, f"{where}: {name}", whole=True)
                except BrokenImage as error:
                    yield error
                if held["bytes"] is None and len(there) < REMEMBERED:
                    there.add(held["path"])

    def images(self, names: Sequence[str] = ("image", "images", "mask")) -> Iterator[tuple[str, list[str], Any]]:
        """(column, where of each, images) of some rows after the other, as arrays of Arrow, of which nothing is copied."""
        import pyarrow.compute

        rows = self.rows()
        names = [name for name in names if name in rows.column_names]
        for table in rows.select_columns([*names, WHERE]).with_format("arrow").iter(TOGETHER) if names else ():
            for name in names:
                wheres, start = table.column(WHERE).to_pylist(), 0
                for chunk in table.column(name).chunks:
                    images, places = chunk, range(len(chunk))
                    if name == "images":
                        images, places = chunk.flatten(), pyarrow.compute.list_parent_indices(chunk).to_pylist()
                    yield name, [wheres[start + place] for place in places], images
                    start += len(chunk)


def keep(data: Data) -> Kept:
    """A data set from the cache, where it is put if it is not there, or if a file has changed.

    Raises:
        PrunusError: it cannot be read, or something in it is wrong; the error names file, row and column.
    """
    folder, version = cache_folder() / "data" / f"{data.layout}-{identity(data, FORMAT)}", data.version()
    try:
        with locked(folder, "cache", wait=True):
            about = _about(folder / "kept", version)
            if about is None:
                with new_folder(folder / "kept") as partial:
                    about = _write(data, partial, version)
            elif about["skipped"]:
                _say(data.title, about["skipped"], about["skipped"] + about["rows"], about["examples"])
    except OSError as error:
        where, why = error.filename or folder, error.strerror or error
        raise PrunusError("cache", str(where), f"it cannot be written or read ({why})") from None
    return Kept(folder / "kept", data.title, data.on_broken == "skip", about)


def _about(folder: Path, version: str | None) -> dict[str, Any] | None:
    """What was written of the data set; None if it is not there, if its place has another version now, or if images of a row that was
    skipped have changed since.
    """
    try:
        about: dict[str, Any] = json.loads((folder / ABOUT).read_bytes())
    except (OSError, ValueError):
        return None
    if None not in (version, about["version"]) and version != about["version"]:
        return None
    return about if all(image_state(path) == state for path, state in about["broken"].items()) else None


def _write(data: Data, folder: Path, version: str | None) -> dict[str, Any]:
    """Reads all rows, and writes those that are whole."""
    import pyarrow

    reading = Reading(data)
    schema = _schema()
    with pyarrow.OSFile(str(folder / ROWS), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        for rows in _together(reading.rows()):
            with refusing("data", data.title, f"the rows up to {rows[-1][WHERE]} cannot be kept"):
                writer.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema=schema))
    about = reading.about() | {"version": version}
    if "label" in about["columns"]:
        _write_numbers(folder / LABELS, "label", reading.labels.final(reading.numbers))
    if about["repeated"]:
        _write_numbers(folder / PICTURES, "first", reading.pictures)
    write_text(folder / ABOUT, json.dumps(about))
    if reading.skipped:
        _say(data.title, reading.skipped, reading.total, reading.examples)
    return about


def _write_numbers(file: Path, name: str, numbers: Sequence[int | None]) -> None:
    import pyarrow

    batch = pyarrow.record_batch([pyarrow.array(numbers, pyarrow.int64())], names=[name])
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _schema() -> Any:
    import pyarrow

    image = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    message = pyarrow.struct({"role": pyarrow.string(), "content": pyarrow.string()})
    types = {"text": pyarrow.string(), "number": pyarrow.int64(), "image": image, "message": message}
    kinds = {name: column.kind.rpartition(" ") for name, column in COLUMNS.items()}
    fields = {name: pyarrow.list_(types[kind]) if many else types[kind] for name, (many, _, kind) in kinds.items()}
    return pyarrow.schema({**fields, WHERE: pyarrow.string()})


def _together(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += sum(len(image["bytes"] or b"") for _, image in images_of(row)) + len(row["text"] or "")
        if len(batch) == TOGETHER or size > HEAVY:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _say(title: str, skipped: int, total: int, examples: Sequence[str]) -> None:
    more = "" if skipped <= len(examples) else " …"
    said = "; ".join(examples[:SHOWN])
    Console(stderr=True).print(
        f"{title}: skipped {skipped:,} of {total:,} rows: {said}{more}", markup=False, highlight=False
    )
