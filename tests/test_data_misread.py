"""Values that would be taken for others, silently, and splits that do not fit each other."""

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from prunus.data import ImageFolder, Table
from prunus.errors import PrunusError
from prunus.sources import towers
from prunus.sources.towers import TowersSource
from prunus.tasks.reasoning import Reasoning

pytestmark = pytest.mark.usefixtures("own_cache")


def picture(file: Path) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(file)
    return file.name


def lines(file: Path, *rows: dict[str, Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_cells_of_a_folders_csv_are_read_as_those_of_a_table(tmp_path: Path) -> None:
    for number in (2, 10):
        picture(tmp_path / f"{number}.png")
    with open(tmp_path / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [["file_name", "label", "captions"], ["2.png", "2", '["a", "b"]'], ["10.png", "10", "c"]]
        )
    data = ImageFolder(folder=str(tmp_path))
    assert data.class_names() is None
    assert data.read()[:]["label"] == [2, 10]
    assert data.read()[:]["captions"] == [["a", "b"], ["c"]]


@pytest.mark.parametrize(
    "text", ["image,label\na.png,1.0\na.png,\na.png,10.0\n", None], ids=["as CSV writes them", "as JSON writes them"]
)
def test_whole_fractions_are_numbers_of_classes(text: str | None, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    file = tmp_path / ("rows.jsonl" if text is None else "rows.csv")
    if text is None:
        lines(file, *({"image": "a.png", "label": label} for label in (1.0, float("nan"), 10.0)))
    else:
        file.write_text(text)
    data = Table(files=str(file))
    assert (data.class_names(), data.read()[:]["label"]) == (None, [1, None, 10])


def test_files_that_number_the_classes_otherwise_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    files = []
    for names in (["cat", "dog"], ["dog", "cat"], ["cat", "dog"]):
        files.append(str(tmp_path / f"{len(files)}.parquet"))
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = pa.table({"image": ["a.png"], "label": [0]})
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), files[-1])
    assert Table(files=[files[0], files[2]]).class_names() == ["cat", "dog"]
    for other in (files[1], lines(tmp_path / "rows.jsonl", {"image": "a.png", "label": 0})):
        with pytest.raises(PrunusError, match="not every file numbers the classes"):
            Table(files=[files[0], other]).read()


def test_folders_of_splits_are_no_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            picture(tmp_path / "pets" / split / name / "a.png")
    with pytest.raises(PrunusError, match="are splits and no classes"):
        ImageFolder(folder=str(tmp_path / "pets")).read()
    assert ImageFolder(folder=str(tmp_path / "pets" / "train")).class_names() == ["cat", "dog"]


def test_both_splits_of_reasoning_number_their_classes_alike(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    row = {"image": "a.png", "text": "red"}
    train = lines(tmp_path / "train.jsonl", row | {"label": "no"}, row | {"label": "yes"})
    one = lines(tmp_path / "one.jsonl", row | {"label": "yes"})
    with pytest.raises(PrunusError, match="its classes are not those of"):
        Reasoning(train=train, evaluation=one).check()
    Reasoning(train=train, evaluation=train).check()


def test_a_picture_of_fractions_is_refused_when_it_is_read(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(PrunusError, match="its pixels are fractions"):
        Table(files=lines(tmp_path / "rows.jsonl", {"image": "a.tiff"})).read()


@pytest.mark.parametrize("extra", [{"captions": ["a", "b"]}, {"messages": [{"role": "assistant", "content": "red"}]}])
def test_a_json_file_of_one_row(extra: dict[str, Any], tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "row.json").write_text(json.dumps({"image": "a.png"} | extra))
    [row] = Table(files=str(tmp_path / "row.json")).read()
    assert {name: row[name] for name in extra} == extra


def test_csv_with_a_long_cell_and_truths(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(f"text,use\n{'w ' * 100_000},true\nother,false\n")
    [row] = Table(files=str(tmp_path / "rows.csv"), only={"use": True}).read()
    assert len(row["text"]) == 200_000


def test_towers_are_whitened_on_pictures_from_all_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def kept(shape: str, sizes: Any, pictures: Any, folder: Path) -> Path:
        seen.extend(one.getpixel((0, 0))[0] for one in pictures)
        return folder

    monkeypatch.setattr(towers, "save_with_towers", kept)
    for number in range(100):
        Image.new("L", (4, 4), number).save(tmp_path / f"{number}.png")
    rows_file = lines(tmp_path / "rows.jsonl", *[{"image": f"{number}.png"} for number in range(100)])
    TowersSource(towers="classifier", pictures=rows_file).folder(tmp_path)  # type: ignore[arg-type]
    assert (len(set(seen)), seen[0], seen[-1]) == (64, 0, 98)
    assert max(after - one for one, after in itertools.pairwise(seen)) == 2


def test_towers_are_whitened_anew_on_other_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(shape: str, sizes: Any, pictures: Any, folder: Path) -> Path:
        return folder

    monkeypatch.setattr(towers, "save_with_towers", kept)
    places = []
    for rows in (1, 2):
        picture(tmp_path / "a.png")
        rows_file = lines(tmp_path / "rows.jsonl", *[{"image": "a.png"}] * rows)
        places.append(TowersSource(towers="classifier", pictures=rows_file).folder(tmp_path))  # type: ignore[arg-type]
    assert places[0] != places[1]
