"""Files as people's programs write them, and pictures of every kind of pixel: read rightly, or one clear error."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from prunus import PrunusError
from prunus.data import AnyData, Data, open_image

ADAPTER: TypeAdapter[Data] = TypeAdapter(AnyData)
GREY = 200


pytestmark = pytest.mark.usefixtures("own_cache")


def read(file: Path, content: bytes | str, **more: Any) -> list[dict[str, Any]]:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(ADAPTER.validate_python({"layout": "table", "files": str(file), **more}).read())


def row_of(**values: Any) -> str:
    return json.dumps(values, ensure_ascii=False)


COCO = {"info": {}, "images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}],
        "annotations": [{"image_id": 7, "caption": "one"}, {"image_id": 7, "caption": "two"}]}  # fmt: skip
WRITTEN: dict[str, tuple[str, str | bytes, dict[str, list[Any]]]] = {
    "semicolons, BOM, CRLF": ("a.csv", "\ufeffcaptions;label\r\nein Hund, braun;1\r\n", {"captions": [["ein Hund, braun"]], "label": [1]}),
    "tabs": ("a.csv", "captions\tlabel\na, b\t1\n", {"captions": [["a, b"]], "label": [1]}),
    "quoted lines": ("a.csv", 'text,label\r\n"two\r\nlines",1\r\n"a ""b""",0\r\n', {"text": ["two\r\nlines", 'a "b"'], "label": [1, 0]}),
    "lines with BOM and CRLF": ("a.jsonl", "\ufeff" + row_of(text="a") + "\r\n\r\n" + row_of(text="b"), {"text": ["a", "b"]}),
    "a list that is called lines": ("a.jsonl", f"[{row_of(text='a')},\n{row_of(text='b')}]", {"text": ["a", "b"]}),
    "one list inside": ("a.json", json.dumps({"version": 1, "data": [{"text": "a"}]}), {"text": ["a"]}),
    "by name": ("a.json", json.dumps({"1": {"text": "a"}, "2": {"text": "b"}}), {"text": ["a", "b"]}),
    "COCO's captions": ("a.json", json.dumps(COCO), {"captions": [["one", "two"]]}),
    "JSON with BOM": ("a.json", "\ufeff[" + row_of(text="a") + "]", {"text": ["a"]}),
    "numbers as answers": ("a.jsonl", row_of(answers=[2, 2.5, 3.0, "4"]), {"answers": [["2", "2.5", "3", "4"]]}),
    "one answer with a bar": ("a.jsonl", row_of(answers=["a|b"]), {"answers": [["a|b"]]}),
    "scripts": ("a.jsonl", row_of(question="这是什么？ ما هذا؟ 🐈"), {"question": ["这是什么？ ما هذا؟ 🐈"]}),
    "one column for two": ("a.jsonl", row_of(said="a"), {"text": ["a"], "captions": [["a"]]}),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITTEN)
def test_files_are_read_as_they_are_meant(kind: str, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    name, content, columns = WRITTEN[kind]
    more = {"columns": {"text": "said", "captions": "said"}} if kind == "one column for two" else {}
    rows = read(tmp_path / name, content, **more)
    assert {column: [row[column] for row in rows] for column in columns} == columns


MISTAKEN: dict[str, tuple[str, str | bytes, str]] = {
    "an answer with a bar": ("a.jsonl", row_of(answers="yes|no"), r'a.jsonl:1: answers = .*\["a\|b"\] is one'),
    "an answer with a bar in CSV": ("a.csv", "answers\nyes|no\n", r"a.csv:2: answers = .*write a list"),
    "no row": ("a.jsonl", row_of(text="a") + "\nnull\n", "a.jsonl:2 = None: a row is a mapping"),
    "a shard": ("a.tar", b"", "layout: cc3m"),
    "packed": ("a.zip", b"", "unpack it"),
    "a picture": ("a.jpg", b"", "layout: imagefolder"),
    "an address": ("a.jsonl", row_of(image="https://x.org/a.jpg"), "fetch the file"),
    "in itself": ("a.jsonl", row_of(image="data:image/png;base64,iVBORw0KGgo="), "written as text"),
    "in base64": ("a.jsonl", row_of(image="iVBORw0KGgo" * 1000), "written as text"),
    "a list": ("a.jsonl", row_of(image=["a.png"]), "it is a list; several pictures of one row are a column called images"),
    "boxes": ("a.json", json.dumps({**COCO, "annotations": [{"image_id": 7, "bbox": [1, 2, 3, 4]}]}), "lacks 'caption'"),
    "UTF-16": ("a.csv", "text\na\n".encode("utf-16"), "no text in UTF-8"),
    "a column of another meaning": ("a.jsonl", row_of(text="a", label=[1, 2]), r"columns: \{label: null\}"),
    "a line in the middle of a row": ("a.csv", 'text,label\n"a\nb",1\n"c\nd",x,y\n', "a.csv:4 = 'y'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MISTAKEN)
def test_what_cannot_be_meant_is_one_error(kind: str, tmp_path: Path) -> None:
    name, content, said = MISTAKEN[kind]
    with pytest.raises(PrunusError, match=said):
        read(tmp_path / name, content)


def test_paths_as_other_systems_and_links_have_them(tmp_path: Path) -> None:
    for place in ("far/pictures", "far/texts", "pictures"):
        (tmp_path / place).mkdir(parents=True)
    Image.new("L", (4, 4), 9).save(tmp_path / "far/pictures/a.png")
    Image.new("L", (4, 4), 99).save(tmp_path / "pictures/a.png")
    Image.new("L", (4, 4), 5).save(tmp_path / "far/texts/~1.png")
    (tmp_path / "texts").symlink_to(tmp_path / "far/texts")
    rows = read(tmp_path / "texts/a.jsonl", row_of(image="../pictures\\a.png") + "\n" + row_of(image="~1.png"))
    assert [open_image(row["image"]).getpixel((0, 0)) for row in rows] == [(9, 9, 9), (5, 5, 5)]


def test_a_folder_without_pictures_and_one_with_two_columns_for_one(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.heic").write_bytes(b"")
    with pytest.raises(PrunusError, match=r"no picture is below it; their files end in .*jpg"):
        ADAPTER.validate_python({"layout": "imagefolder", "folder": str(tmp_path / "empty")}).read()
    Image.new("L", (4, 4), 9).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(row_of(file_name="a.png", image="the first"))
    (row,) = ADAPTER.validate_python({"layout": "imagefolder", "folder": str(tmp_path)}).read()
    assert open_image(row["image"]).getpixel((0, 0)) == (9, 9, 9)


def tiff(values: np.ndarray[Any, Any], bits: int, kind: int = 1, white: int = 1) -> bytes:
    """A TIFF of grey pixels: `kind` 1 is without a sign, 2 with one, 3 fractions; `white` 0 counts from white to black."""
    data, (height, width) = values.tobytes(), values.shape
    entries = [
        (256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, white), (273, 4, 8), (277, 3, 1), (278, 3, height),
        (279, 4, len(data)), (339, 3, kind),
    ]  # fmt: skip
    table = b"".join(struct.pack("<HHII", tag, type_, 1, value) for tag, type_, value in entries)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(entries)) + table + bytes(4)


@pytest.mark.parametrize(
    ("values", "bits", "kind", "white"),
    [(np.uint32(GREY), 32, 1, 1), (np.int32(GREY), 32, 2, 1), (np.int16(GREY), 16, 2, 1), (np.uint16(GREY << 8), 16, 1, 0),
     (np.uint8(GREY), 12, 1, 1), (np.float32(0.5), 32, 3, 1)],
)  # fmt: skip
def test_pixels_of_which_nothing_says_how_light_they_are_are_refused(
    values: Any, bits: int, kind: int, white: int, tmp_path: Path
) -> None:
    shape = (4, 6) if bits == 12 else (4, 4)  # as many bytes
    (tmp_path / "a.tif").write_bytes(tiff(np.full(shape, values), bits, kind, white))
    with pytest.raises(
        PrunusError, match=r"rows.jsonl:1: image = .*a.tif.*(which is white|fractions); save it with 8 bits"
    ):
        read(tmp_path / "rows.jsonl", row_of(image="a.tif"))


def test_colours_of_which_pillow_makes_no_others_are_refused() -> None:
    with pytest.raises(PrunusError, match="its colours are La; save it as RGB"):
        open_image(Image.new("La", (4, 4)))


def test_sixteen_bits_of_grey_are_read_by_their_range(tmp_path: Path) -> None:
    deep = np.full((4, 4), GREY << 8, np.uint16)
    (tmp_path / "a.tif").write_bytes(tiff(deep, 16))
    (tmp_path / "a.pgm").write_bytes(b"P5 4 4 65535 " + deep.byteswap().tobytes())
    for name in ("a.png", "a.jp2"):
        Image.fromarray(deep).save(tmp_path / name)
    for name in ("a.tif", "a.pgm", "a.png", "a.jp2"):
        (row,) = read(tmp_path / f"{name}.jsonl", row_of(image=name))
        assert open_image(row["image"]).getpixel((1, 1)) == (GREY,) * 3, name


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_of_several_frames_the_first_is_seen(ending: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    more = {"lossless": True} if ending == "webp" else {}
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], **more)
    (row,) = read(tmp_path / "rows.jsonl", row_of(image=f"a.{ending}"))
    assert open_image(row["image"]).getpixel((3, 3)) == (250, 0, 0)


@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpegs_of_print_and_video_are_read_in_their_colours(subsampling: int, tmp_path: Path) -> None:
    for mode in ("YCbCr", "CMYK", "RGB"):
        Image.new("RGB", (8, 8), (250, 0, 0)).convert(mode).save(
            tmp_path / "a.jpg", subsampling=subsampling, quality=95
        )
        red, green, blue = open_image(str(tmp_path / "a.jpg")).getpixel((3, 3))  # type: ignore[misc]
        assert red > 240
        assert max(green, blue) < 12
