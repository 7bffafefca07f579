"""Two hundred damaged inputs, made by seed: each is one error that names what is wrong, or a row that is left out and counted.
What is only unusual is read.
"""

from __future__ import annotations

import csv
import functools
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow import Table, parquet
from pydantic import TypeAdapter

from prunus import PrunusError
from prunus.data import IGNORED, AnyData, Data, open_image, open_mask
from prunus.data.augment import SegmenterPipeline

Rows = list[dict[str, Any]]
ADAPTER: TypeAdapter[Data] = TypeAdapter(AnyData)
ROWS = 5
CASES = 200


pytestmark = pytest.mark.usefixtures("own_cache")


def picture(draw: Random, mode: str = "RGB") -> Image.Image:
    size = draw.randint(24, 40), draw.randint(24, 40)
    return Image.frombytes("RGB", size, draw.randbytes(3 * size[0] * size[1])).convert(mode)


def rows_in(folder: Path, draw: Random) -> Rows:
    """A folder of images, and what is said about them."""
    rows = []
    for number in range(ROWS):
        picture(draw).save(folder / f"{number}.jpg")
        rows.append({"image": f"{number}.jpg", "captions": [f"picture {number}"], "question_id": number})
    return rows


Damage = Callable[[Path, dict[str, Any], Random], None]


def _missing(folder: Path, row: dict[str, Any], draw: Random) -> None:
    (folder / row["image"]).unlink()


def _truncated(ending: str) -> Damage:
    def damage(folder: Path, row: dict[str, Any], draw: Random) -> None:
        row["image"] = f"cut.{ending}"
        picture(draw).save(folder / row["image"])
        whole = (folder / row["image"]).read_bytes()
        (folder / row["image"]).write_bytes(whole[: int(len(whole) * draw.uniform(0.05, 0.9))])

    return damage


def _overwritten(content: Callable[[Random], bytes]) -> Damage:
    def damage(folder: Path, row: dict[str, Any], draw: Random) -> None:
        (folder / row["image"]).write_bytes(content(draw))

    return damage


def _folder(folder: Path, row: dict[str, Any], draw: Random) -> None:
    (folder / row["image"]).unlink()
    (folder / row["image"]).mkdir()


def _pixel(folder: Path, row: dict[str, Any], draw: Random) -> None:
    Image.new(draw.choice(["L", "RGB", "RGBA"]), (1, 1)).save(folder / "one.png")
    row["image"] = "one.png"


@functools.cache
def bomb(side: int) -> bytes:
    """A PNG of one colour, a few hundred thousand bytes that claim to be side × side pixels."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(side * (1 + side // 8)))),
        (b"IEND", b""),
    ]
    chunks = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _set(name: str, values: list[Any]) -> Damage:
    def damage(folder: Path, row: dict[str, Any], draw: Random) -> None:
        row[name] = draw.choice(values)

    return damage


DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing image": (_missing, "there is no such file"),
    "truncated JPEG": (_truncated("jpg"), "damaged|cannot be read"),
    "truncated PNG": (_truncated("png"), "damaged|cannot be read"),
    "truncated WebP": (_truncated("webp"), "damaged|cannot be read"),
    "no image at all": (_overwritten(lambda draw: draw.randbytes(300)), "damaged, or no image"),
    "a page instead": (_overwritten(lambda draw: b"<html>404</html>"), "damaged, or no image"),
    "empty file": (_overwritten(lambda draw: b""), "damaged, or no image"),
    "folder": (_folder, "it is a folder or a device"),
    "page for a printer": (_overwritten(lambda draw: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "no image of a known format"),
    "1 x 1 pixels": (_pixel, "single pixel"),
    "20,000 x 20,000 pixels": (_overwritten(lambda draw: bomb(20_000)), "more than 89,478,485 pixels"),
    "empty caption": (_set("captions", ["", " ", [], ["a", ""], ["\n"]]), "is empty"),
    "caption of a wrong type": (_set("captions", [5, 1.5, True, {"a": "b"}, [["a"]], [None]]), "give text"),
    "half a character": (_set("captions", ["\ud83d", ["a \udc00"]]), "half of a surrogate pair"),
    "image of a wrong type": (_set("image", [7, [], True, {"url": "a"}, ""]), "it is no image"),
    "address": (_set("image", ["https://example.com/a.jpg"]), "fetch the file"),
    "duplicate ids": (lambda folder, row, draw: row.update(question_id=99), "it is that of"),
    "id of a wrong type": (_set("question_id", [1.5, [], True]), "give text"),
    "no caption": (lambda folder, row, draw: row.pop("captions"), "has no captions"),
}  # fmt: skip


IN_BYTES = ("truncated JPEG", "truncated PNG", "truncated WebP", "no image at all", "a page instead", "empty file", "1 x 1 pixels",
            "20,000 x 20,000 pixels", "duplicate ids")  # fmt: skip
"""Damages that a Parquet file can hold."""


def written(folder: Path, rows: Rows, draw: Random, name: str = "") -> Path:
    """The rows in a format that can hold them; images that are files by their paths, or by their bytes."""
    ending = draw.choice(["jsonl", "json", "parquet"] if name in IN_BYTES else ["jsonl", "json"])
    file = folder / f"rows.{ending}"
    if ending == "parquet":
        embedded = [
            row | {"image": {"bytes": (folder / row["image"]).read_bytes(), "path": row["image"]}} for row in rows
        ]
        parquet.write_table(Table.from_pylist(embedded), file)
        return file
    lines = [json.dumps(row) for row in rows]
    file.write_text("\n".join(lines) if ending == "jsonl" else f"[{','.join(lines)}]")
    return file


def see_all(data: Data) -> None:
    """What happens before and while a model is trained."""
    data.check(["image", "captions"])
    for row in data.read():
        open_image(row["image"], row["where"])


@pytest.mark.parametrize("seed", range(CASES))
def test_a_damaged_row_is_one_error_or_left_out_and_counted(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = Random(seed)
    name = list(DAMAGES)[seed % len(DAMAGES)]
    damage, said = DAMAGES[name]
    rows = rows_in(tmp_path, draw)
    place = draw.randrange(1, ROWS)
    damage(tmp_path, rows[place], draw)
    if name == "duplicate ids":
        rows[0]["question_id"] = 99
    file = written(tmp_path, rows, draw, name)
    data = ADAPTER.validate_python(str(file))
    with pytest.raises(PrunusError, match=said) as error:
        see_all(data)
    assert str(file) in str(error.value), "the file is named"
    assert str(place + 1) in str(error.value).replace(str(tmp_path), ""), "the row is named"
    assert "Traceback" not in str(error.value)
    skipping = ADAPTER.validate_python({"layout": "table", "files": str(file), "on_broken": "skip"})
    kept = skipping.read(["image", "captions"])
    assert [row["question_id"] for row in kept] == [
        str(row["question_id"]) for at, row in enumerate(rows) if at != place
    ]
    assert all(open_image(row["image"]).mode == "RGB" for row in kept)
    assert skipping.kept.skipped == (name != "no caption")
    assert f"skipped 1 of {ROWS} rows" in " ".join(capsys.readouterr().err.split())


MODES = {
    "grey": "L",
    "grey with alpha": "LA",
    "RGBA": "RGBA",
    "palette": "P",
    "two colours": "1",
    "CMYK": "CMYK",
    "16 bits": "I;16",
}


@pytest.mark.parametrize("kind", MODES)
def test_unusual_pictures_become_rgb(kind: str, tmp_path: Path) -> None:
    draw = Random(kind)
    image = picture(draw, MODES[kind] if kind != "16 bits" else "L")
    if kind == "16 bits":
        image = Image.frombytes(
            "I;16",
            image.size,
            struct.pack(f"<{image.width * image.height}H", *(256 * grey for grey in image.tobytes())),
        )
    file = tmp_path / ("a.jpg" if kind == "CMYK" else "a.png")
    image.save(file)
    read = open_image(str(file))
    assert (read.mode, read.size) == ("RGB", image.size)
    expected = image.convert("RGB") if kind != "16 bits" else picture(Random(kind), "L").convert("RGB")
    if kind != "CMYK":
        assert read.tobytes() == expected.tobytes()


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    picture(Random(0), "P").save(tmp_path / "a.png", transparency=bytes(range(256)))
    assert open_image(str(tmp_path / "a.png")).mode == "RGB"


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_picture_is_turned_as_its_camera_was(turn: int, tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 24))
    image.paste((255, 255, 255), (0, 0, 20, 12))
    exif = Image.Exif()
    exif[274] = turn
    image.save(tmp_path / "a.png", exif=exif)
    read = open_image(str(tmp_path / "a.png"))
    assert read.size == ((40, 24) if turn < 5 else (24, 40))
    right, below = (1 if turn in (2, 3, 7, 8) else 0), (1 if turn in (3, 4, 6, 7) else 0)
    if turn in (6, 8):
        right, below = (1, 0) if turn == 6 else (0, 1)
    corner = (right * (read.width - 1), below * (read.height - 1))
    assert read.getpixel(corner) == (255, 255, 255)


def test_a_damaged_exif_entry_takes_nothing_from_the_picture(tmp_path: Path) -> None:
    picture(Random(0)).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x12\x01")
    assert open_image(str(tmp_path / "a.jpg")).mode == "RGB"


@pytest.mark.parametrize(
    "name", ["ä ö ü.jpg", "猫.jpg", "🐈.jpg", "e\u0301.jpg", "a b#c?d%20.jpg", "'\".jpg", "[x].jpg"]
)
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_names_and_words_of_any_script(name: str, ending: str, tmp_path: Path) -> None:
    picture(Random(0)).save(tmp_path / name)
    file = tmp_path / f"häuser 家.{ending}"
    row = {"image": name, "captions": "eine Katze, 一只猫 🐈"}
    if ending == "parquet":
        parquet.write_table(Table.from_pylist([row]), file)
    elif ending == "csv":
        with open(file, "w", newline="", encoding="utf-8") as text:
            csv.writer(text).writerows([list(row), list(row.values())])
    else:
        file.write_text(json.dumps([row] if ending == "json" else row, ensure_ascii=False), encoding="utf-8")
    data = ADAPTER.validate_python({"layout": "table", "files": str(file)})
    data.check(["image", "captions"])
    (found,) = data.read()
    assert found["captions"] == [row["captions"]]
    assert open_image(found["image"]).mode == "RGB"


FILES: dict[str, tuple[str, bytes, str]] = {
    "no JSON": ("a.json", b"[{]", "is not JSON"),
    "a broken line": ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a.jsonl:2.*is not JSON"),
    "no rows": ("a.jsonl", b"\n\n", "no rows"),
    "an empty list": ("a.json", b"[]", "no rows"),
    "rows that are none": ("a.jsonl", b"[1, 2]\n", "a row is a mapping"),
    "a number": ("a.json", b"5", "no list of rows"),
    "several lists": ("a.json", b'{"a": [1], "b": [2]}', "several lists, a, b"),
    "no UTF-8": ("a.jsonl", b'{"text": "\xe4"}\n', "no text in UTF-8"),
    "cells too many": ("a.csv", b"text\na,b\n", r"a.csv:2.*2 cells"),
    "columns of one name": ("a.csv", b"text,text\na,b\n", "a name of its own"),
    "an open quote": ("a.csv", b'text\n"a\n', "is not CSV"),
    "no Parquet": ("a.parquet", b"PAR1" + bytes(40), "no Parquet file"),
    "an unknown format": ("a.xlsx", b"", "its ending says no format"),
    "labels of two kinds": ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": "a", "label": "b"}\n', "a.jsonl:2: label.*another kind"),
    "a label of a wrong type": ("a.jsonl", b'{"text": "a", "label": [1]}\n', "the number or the name of a class"),
    "nesting": ("a.json", b"[" * 100_000, "is not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_file_is_one_error(kind: str, tmp_path: Path) -> None:
    name, content, said = FILES[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PrunusError, match=said) as error:
        ADAPTER.validate_python(str(tmp_path / name)).check(["text"])
    assert name in str(error.value)


def test_absent_files_and_columns_are_named_with_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"caption": "a cat", "picture": "a.jpg"}\n')
    for spec, said in (
        (str(tmp_path / "b.jsonl"), "there is no such file"),
        (str(tmp_path / "*.csv"), "no file has such a name"),
        (str(tmp_path), "it is a folder; name the files in it"),
        (str(file), r"captions = None: there is no such column; there are caption, picture.*columns: \{captions: caption\}"),
        ({"layout": "table", "files": str(file), "columns": {"captions": "captoin"}}, "columns.captions.*did you mean caption"),
        ({"layout": "table", "files": str(file), "only": {"split": "train"}}, "only.split.*no such column"),
        ({"layout": "table", "files": str(file), "only": {"caption": "b"}}, "no row has"),
    ):  # fmt: skip
        with pytest.raises(PrunusError, match=said):
            ADAPTER.validate_python(spec).check(["captions"])
    with pytest.raises(ValueError, match="did you mean captions"):
        ADAPTER.validate_python({"layout": "table", "files": "a.jsonl", "columns": {"caption": "captions"}})
    with pytest.raises(ValueError, match="did you mean table"):
        ADAPTER.validate_python({"layout": "tabel"})


def test_when_every_row_is_broken_there_is_nothing_to_train_on(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"captions": ""}\n' * 3)
    with pytest.raises(PrunusError, match=r"every row is broken, such as .*a.jsonl:1"):
        ADAPTER.validate_python({"layout": "table", "files": str(tmp_path / "a.jsonl"), "on_broken": "skip"}).read()


def test_an_image_that_was_mended_comes_back(tmp_path: Path) -> None:
    rows_in(tmp_path, Random(0))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"image": f"{number}.jpg"}) for number in range(ROWS)))
    whole = (tmp_path / "2.jpg").read_bytes()
    (tmp_path / "2.jpg").write_bytes(whole[:200])
    spec = {"layout": "table", "files": str(tmp_path / "a.jsonl"), "on_broken": "skip"}
    assert len(ADAPTER.validate_python(spec).read()) == ROWS - 1
    (tmp_path / "2.jpg").write_bytes(whole)
    assert len(ADAPTER.validate_python(spec).read()) == ROWS


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(PrunusError, match="it is a folder or a device"):
        open_image(str(tmp_path / "a.jpg"))


def test_an_image_that_has_gone_since_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, rows_in(tmp_path, Random(0)), Random(0))
    ADAPTER.validate_python(str(file)).check(["image"])
    (tmp_path / "3.jpg").unlink()
    with pytest.raises(PrunusError, match=r"4: image.*3.jpg.*no such file any more"):
        ADAPTER.validate_python(str(file)).check(["image"])


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_mask_lies_on_its_picture_as_it_is_seen(turn: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = turn
    Image.new("RGB", (40, 24)).save(tmp_path / "a.jpg", exif=exif)
    on_sides = turn > 4

    def found(size: tuple[int, int], **more: Any) -> Any:
        Image.new("L", size).save(tmp_path / "mask.png", **more)
        (tmp_path / "rows.jsonl").write_text('{"image": "a.jpg", "mask": "mask.png"}\n')
        data = ADAPTER.validate_python(str(tmp_path / "rows.jsonl"))
        row = data.read(["image", "mask"])[0]
        return open_image(row["image"]).size, open_mask(row["mask"]).size

    if on_sides:
        assert found((24, 40)) == ((24, 40), (24, 40))
        with pytest.raises(PrunusError, match="24 × 40 pixels, turned as its EXIF entry says"):
            found((40, 24))
    elif turn == 1:
        assert found((40, 24)) == ((40, 24), (40, 24))
    else:
        with pytest.raises(PrunusError, match="nothing says whether the mask is"):
            found((40, 24))
    seen = (24, 40) if on_sides else (40, 24)
    assert found((40, 24), exif=exif) == (seen, seen)


def test_classes_beyond_255_and_pixels_that_nobody_labelled(tmp_path: Path) -> None:
    classes = np.array([[0, 254, 255], [256, 300, 65535]])
    Image.fromarray(classes.astype(np.uint16)).save(tmp_path / "wide.png")
    assert np.asarray(open_mask(str(tmp_path / "wide.png"))).tolist() == classes.tolist()
    assert np.asarray(open_mask(str(tmp_path / "wide.png"), "", 255)).tolist() == [[IGNORED] * 2 + [0], [1, 45, 65280]]
    Image.fromarray(classes.clip(0, 255).astype(np.uint8)).save(tmp_path / "narrow.png")
    assert np.asarray(open_mask(str(tmp_path / "narrow.png"))).tolist() == [[0, 254, IGNORED], [IGNORED] * 3]
    mask = open_mask(str(tmp_path / "wide.png")).resize((60, 40), Image.Resampling.NEAREST)
    _, version = SegmenterPipeline().version(Image.new("RGB", (60, 40)), mask, (96, 96), Random(1))
    assert {256, 300, 65535, IGNORED} & set(np.unique(np.asarray(version)).tolist()) - {IGNORED}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "F"])
def test_a_mask_with_colours_or_fractions_is_refused_when_it_is_read(mode: str, tmp_path: Path) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    Image.new(mode, (6, 4)).save(tmp_path / "mask.tiff")
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "mask": "mask.tiff"}\n')
    with pytest.raises(PrunusError, match=r"rows.jsonl:1: mask = .*one number a pixel"):
        ADAPTER.validate_python(str(tmp_path / "rows.jsonl")).read()
