"""Tables with a row for every caption: rows of one picture are one row of captions and retrieval."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pyarrow import Table, parquet
from pydantic import TypeAdapter

from prunus.data import AnyData, Data
from prunus.tasks import Caption, Retrieval

ADAPTER: TypeAdapter[Data] = TypeAdapter(AnyData)
SAID = [
    ("a.png", "one"),
    ("b.png", "two"),
    ("./a.png", "three"),
    ("a.png", "four"),
    ("b.png", "five"),
    ("c.png", "six"),
]
TOGETHER = [["one", "three", "four"], ["two", "five"], ["six"]]


pytestmark = pytest.mark.usefixtures("own_cache")


def table(folder: Path, ending: str) -> dict[str, Any]:
    for number, name in enumerate("abc"):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"{name}.png")
    file = folder / f"rows.{ending}"
    if ending == "csv":
        with file.open("w", newline="") as text:
            csv.writer(text).writerows([("image", "captions"), *SAID])
    else:
        rows = [{"image": {"bytes": (folder / name).read_bytes()}, "captions": [said]} for name, said in SAID]
        parquet.write_table(Table.from_pylist(rows), file)
    return {"layout": "table", "files": str(file)}


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("kind", [Caption, Retrieval])
def test_rows_of_one_picture_are_one(kind: type[Caption | Retrieval], ending: str, tmp_path: Path) -> None:
    task = kind(train=table(tmp_path, ending), evaluation=table(tmp_path, ending))  # type: ignore[arg-type]
    rows = task.rows("evaluation")
    assert [rows[place]["captions"] for place in range(len(rows))] == TOGETHER
    items: Any = task.still_data()
    assert [(items[i]["row"], items[i]["captions"][items[i]["part"]]) for i in range(len(items))] == [
        (row, said) for row, captions in enumerate(TOGETHER) for said in captions
    ]


def test_rows_that_are_left_out_leave_the_others_together(tmp_path: Path) -> None:
    spec = table(tmp_path, "csv")
    with Path(spec["files"]).open("a") as text:
        text.write("a.png,\nc.png,seven\n")
    found = ADAPTER.validate_python({**spec, "on_broken": "skip"}).pictures()
    assert [found[place]["captions"] for place in range(len(found))] == [*TOGETHER[:2], ["six", "seven"]]


def test_a_table_with_a_row_for_every_picture_is_as_it_is(tmp_path: Path) -> None:
    data = ADAPTER.validate_python({**table(tmp_path, "csv"), "limit": 2})
    assert data.pictures()["captions"] == data.read()["captions"] == [["one"], ["two"]]
