"""Rows of files: JSON, JSON lines, CSV and Parquet, read bit by bit where the format allows it."""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from prunus.data.columns import COLUMNS
from prunus.data.source import given_path
from prunus.errors import PrunusError, refusing

Row = tuple[str, Mapping[str, Any]]
"""File and place, for errors; values by name."""
LARGEST_CELL = 1 << 30
"""Characters of a cell of CSV."""
TOGETHER = 64
"""Rows of a Parquet file that are read at a time: they may hold images."""


def files_of(field: str, pattern: str) -> list[Path]:
    """The files that a path or a glob names, sorted.

    Raises:
        PrunusError: there are none, or one is a folder or of an unknown format.
    """
    for file in (found := paths_of(field, pattern)):
        if file.is_dir():
            raise PrunusError(
                field, str(file), f"it is a folder; name the files in it, such as {file}/*.jsonl, or take a layout for folders: imagefolder, hub"
            )  # fmt: skip
        if file.suffix.lower() not in READERS:
            hint = HINTS.get(file.suffix.lower(), "save it as one of these")
            raise PrunusError(field, str(file), f"its ending says no format; there are {', '.join(READERS)}; {hint}")
    return found


def paths_of(field: str, pattern: str) -> list[Path]:
    """What a path or a glob names, sorted.

    Raises:
        PrunusError: it is nothing.
    """
    if not glob.has_magic(pattern) or Path(pattern).exists():
        return [given_path(field, pattern)]
    found = [Path(name) for name in sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))]
    if not found:
        raise PrunusError(field, pattern, "no file has such a name")
    return found


def rows_of(file: Path, wanted: Collection[str] | None = None) -> Iterator[Row]:
    """The rows of a file, by its ending.

    Args:
        file: the file.
        wanted: names of columns; others need not be read, and may be None.

    Raises:
        PrunusError: it is damaged; the error names the line.
    """
    try:
        yield from READERS[file.suffix.lower()](file, wanted)
    except OSError as error:
        raise PrunusError("file", str(file), f"it cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise PrunusError("file", str(file), "it is no text in UTF-8") from None


def json_of(file: Path, shorten: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """What a JSON file holds.

    Args:
        file: the file.
        shorten: what is kept of each mapping, where a file holds more of them than memory should.

    Raises:
        PrunusError: it is damaged.
    """
    try:
        return json.loads(file.read_bytes(), object_hook=shorten)
    except OSError as error:
        raise PrunusError("file", str(file), f"it cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise PrunusError("file", str(file), f"it is not JSON: {error}") from None


def _json_lines(file: Path, wanted: Collection[str] | None) -> Iterator[Row]:
    """A mapping a line; or a list of them all, as some call it `.jsonl`, too."""
    with open(file, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1 and line.lstrip().startswith("["):
                yield from _json(file, wanted)
                return
            if line.strip():
                yield f"{file}:{number}", _mapping(f"{file}:{number}", _parsed(f"{file}:{number}", line))


def _parsed(where: str, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PrunusError(where, line[:80], f"the line is not JSON: {error}") from None


def _json(file: Path, wanted: Collection[str] | None) -> Iterator[Row]:
    """A list of mappings, or a mapping with one such list in it, or of a name to each; COCO's captions; or lines, as some call them
    `.json`, too.
    """
    with open(file, encoding="utf-8-sig") as text:
        first = text.readline()
        more = any(line.strip() for line in text)
    if more and first.lstrip().startswith("{") and first.rstrip().endswith("}"):
        yield from _json_lines(file, wanted)
        return
    data = json_of(file)
    if isinstance(data, Mapping):
        lists = [name for name, value in data.items() if isinstance(value, list) and value]
        if COLUMNS.keys() & data.keys() and not any(_are_rows(data[name]) for name in lists if name != "messages"):
            lists = []  # it is the only row itself
        if {"images", "annotations"} <= set(lists):
            data = _of_coco(file, data)
        elif len(lists) > 1:
            raise PrunusError("file", str(file), f"it holds several lists, {', '.join(lists)}; give a file with one")
        elif lists:
            data = data[lists[0]]
        else:
            named = len(data) > 1 and not COLUMNS.keys() & data.keys() and _are_rows(list(data.values()))
            data = list(data.values()) if named else [data]
    if not isinstance(data, list):
        raise PrunusError("file", str(file), "it holds no list of rows")
    for number, row in enumerate(data, start=1):
        where = f"{file}, row {number}"
        yield where, _mapping(where, row)


def _of_coco(file: Path, data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each picture that captions name, of a file as COCO publishes them.

    Raises:
        PrunusError: it holds boxes or answers, and no captions.
    """
    said: dict[Any, list[Any]] = {}
    try:
        for one in data["annotations"]:
            said.setdefault(one["image_id"], []).append(one["caption"])
        return [
            {**one, "image": one["file_name"], "captions": said[one["id"]]}
            for one in data["images"]
            if one["id"] in said
        ]
    except (KeyError, TypeError) as error:
        raise PrunusError(
            "file", str(file), f"it is laid out as COCO's captions, and lacks {error}; give a file with a row for each picture"
        ) from None  # fmt: skip


def _are_rows(values: list[Any]) -> bool:
    return all(isinstance(value, Mapping) for value in values)


def _mapping(where: str, row: Any) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise PrunusError(where, row, 'a row is a mapping, such as {"image": "a.jpg", "text": "a cat"}')
    return row


def _csv(file: Path, wanted: Collection[str] | None) -> Iterator[Row]:
    """The first line names the columns; an empty cell is none."""
    csv.field_size_limit(LARGEST_CELL)  # the module's own is too small for chats
    with open(file, encoding="utf-8-sig", newline="") as text:
        delimiter = "\t" if file.suffix.lower() == ".tsv" else _delimiter(text.readline())
        text.seek(0)
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            names, first = next(reader, []), reader.line_num + 1
            if len(set(names)) < len(names) or not all(names):
                raise PrunusError(
                    f"{file}:1", names, "the first line is to name the columns, each by a name of its own"
                )
            for cells in reader:
                where, first = f"{file}:{first}", reader.line_num + 1
                if len(cells) > len(names):
                    raise PrunusError(
                        where, cells[-1], f"the line has {len(cells)} cells, and there are {len(names)} columns; put text with {delimiter!r} into "
                        "quotes",
                    )  # fmt: skip
                if cells:
                    yield where, {name: cell or None for name, cell in zip(names, cells, strict=False)}
        except csv.Error as error:
            raise PrunusError(f"{file}:{reader.line_num}", None, f"the line is not CSV: {error}") from None


def _delimiter(header: str) -> str:
    """What stands between the names of columns: a comma, or what programs write where numbers have one."""
    return next((one for one in (",", ";", "\t", "|") if one in header), ",")


def _parquet(file: Path, wanted: Collection[str] | None) -> Iterator[Row]:
    import pyarrow.parquet

    with refusing("file", str(file), "it is damaged, or no Parquet file"):
        opened = pyarrow.parquet.ParquetFile(file)
        names = opened.schema_arrow.names
        others = {} if wanted is None else dict.fromkeys(name for name in names if name not in wanted)
        number = 0
        for batch in opened.iter_batches(TOGETHER, columns=[name for name in names if name not in others]):
            for row in batch.to_pylist():
                number += 1
                yield f"{file}, row {number}", {**others, **row}


def parquet_classes(file: Path, column: str) -> list[str] | None:
    """Names of the classes of a column, as `datasets` writes them into a Parquet file; None where there are none."""
    import pyarrow.parquet

    with refusing("file", str(file), "it is damaged, or no Parquet file"):
        written = (pyarrow.parquet.read_schema(file).metadata or {}).get(b"huggingface", b"{}")
    feature = json.loads(written).get("info", {}).get("features", {}).get(column, {})
    names = feature.get("names") if isinstance(feature, Mapping) else None
    return list(names) if names else None


READERS: dict[str, Callable[[Path, Collection[str] | None], Iterator[Row]]] = {
    ".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet,
}  # fmt: skip
"""By the endings of files."""
HINTS = {
    ".tar": "pictures and captions in shards are `layout: cc3m`", ".zip": "unpack it", ".gz": "unpack it", ".xz": "unpack it",
    ".xlsx": "save the sheet as CSV", ".xls": "save the sheet as CSV", ".ods": "save the sheet as CSV", ".txt": "a plain text is `layout: text`",
    ".arrow": "the folder that `save_to_disk` made is `layout: hub`", ".pkl": "save the frame by `to_parquet`",
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".webp"), "a folder of pictures is `layout: imagefolder`"),
}  # fmt: skip
"""What to do with files of other endings."""
