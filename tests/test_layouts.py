"""Layouts of data: each reads a small folder as its authors publish it."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from pydantic import TypeAdapter

from prunus import PrunusError
from prunus.data import COLUMNS, IGNORED, AnyData, Data, open_image, open_mask
from prunus.extensions import load_extension
from tests.shared import FOLDER

ADAPTER: TypeAdapter[Data] = TypeAdapter(AnyData)


pytestmark = pytest.mark.usefixtures("own_cache")


def made(spec: Any) -> Data:
    return ADAPTER.validate_python(spec)


def picture(path: Path, shade: int = 0, size: tuple[int, int] = (8, 6)) -> None:
    """A grey picture whose shade tells which it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, shade, shade)).save(path, "PNG")


def shade(image: Any) -> int:
    return int(open_image(image).getpixel((0, 0))[0])  # type: ignore[index]


def dump(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def lines(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def vqav2(root: Path, prefix: str = "v2_") -> None:
    for year, number in (("train2014", 9), ("val2014", 42)):
        picture(root / year / f"COCO_{year}_{number:012d}.jpg", number)
        asked = [{"image_id": number, "question": "What is it?", "question_id": 1000 * number + at} for at in range(2)]
        dump(root / f"{prefix}OpenEnded_mscoco_{year}_questions.json", {"info": {}, "questions": asked})
        answered = [{"question_id": one["question_id"], "image_id": number, "multiple_choice_answer": "yes",
                     "answers": [{"answer": f"a{at % 3}", "answer_id": at} for at in range(10)]} for one in reversed(asked)]  # fmt: skip
        dump(root / "annotations" / f"{prefix}mscoco_{year}_annotations.json", {"annotations": answered})
    if prefix:
        picture(root / "images/test2015/COCO_test2015_000000000001.jpg", 1)
        asked = [{"image_id": 1, "question": "Where?", "question_id": 1000}]
        dump(root / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": asked})


def gqa(root: Path) -> None:
    picture(root / "images/n1.jpg", 1)
    picture(root / "images/2.jpg", 2)
    asked = {"07": {"question": "Is it red?", "imageId": "n1", "answer": "no", "fullAnswer": "No, it is not."},
             "08": {"question": "What is it?", "imageId": "2", "answer": "cup"}}  # fmt: skip
    dump(root / "questions1.2/val_balanced_questions.json", asked)
    for part, name in enumerate(asked):
        dump(root / f"questions1.2/train_all_questions/train_all_questions_{part}.json", {name: asked[name]})


def nocaps(root: Path) -> None:
    images = [
        {"id": at, "file_name": f"{at:016x}.jpg", "domain": f"{kind}-domain"} for at, kind in enumerate(("in", "out"))
    ]
    for at, image in enumerate(images):
        picture(root / "images" / image["file_name"], at)
    said = [{"image_id": at % 2, "id": at, "caption": f"caption {at}"} for at in range(20)]
    dump(root / "nocaps_val_4500_captions.json", {"images": images, "annotations": said})


def karpathy(name: str, folder: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        images = []
        for at, split in enumerate(("train", "restval", "val", "test", "train")):
            picture(root / folder / f"{at}.jpg", at)
            path = {} if name.startswith("flickr") else {"filepath": folder}
            images.append({"filename": f"{at}.jpg", "split": split, "imgid": at, **path,
                           "sentences": [{"raw": f"A {at}.", "tokens": ["a"]}, {"raw": f"B {at}."}]})  # fmt: skip
        dump(root / f"dataset_{name}.json", {"images": images, "dataset": name})

    return make


def blip_lists(root: Path) -> None:
    for at in range(2):
        picture(root / f"val2014/{at}.jpg", at)
    rows = [{"image": f"val2014/{at % 2}.jpg", "caption": f"c{at}", "image_id": f"coco_{at % 2}"} for at in range(4)]
    dump(root / "coco_karpathy_train.json", rows)
    dump(root / "coco_karpathy_val.json", [{"image": "val2014/1.jpg", "caption": ["a", "b", "c"]}])


def flickr_lists(root: Path) -> None:
    """As BLIP has them, beside a folder of the other name."""
    picture(root / "flickr30k_images/1.jpg", 1)
    dump(root / "flickr30k_train.json", [{"image": "flickr30k-images/1.jpg", "caption": "c1"}])


def nlvr2(root: Path) -> None:
    rows = []
    for at, label in enumerate(("True", "False")):
        rows.append({"identifier": f"train-10-{at}-1", "sentence": f"s{at}", "label": label, "directory": 67})
        for side in (0, 1):
            picture(root / f"images/train/67/train-10-{at}-img{side}.png", 10 * at + side)
            picture(root / f"images/dev/dev-10-{at}-img{side}.png", 10 * at + side)
    lines(root / "nlvr2/data/train.json", rows)
    lines(root / "nlvr2/data/dev.json", [{**rows[0], "identifier": "dev-10-1-0"}])


def nlvr(root: Path) -> None:
    for order in (0, 5):
        picture(root / f"nlvr/dev/images/0/dev-12-0-{order}.png", 10 + order)
    picture(root / "nlvr/dev/images/3/dev-12-1-0.png", 20)
    rows = [
        {"identifier": f"12-{at}", "sentence": f"s{at}", "label": label} for at, label in enumerate(("true", "false"))
    ]
    lines(root / "nlvr/dev/dev.json", rows)


def imagenet(root: Path) -> None:
    for at, synset in enumerate(("n02", "n01")):
        for split in ("train", "val"):
            picture(root / split / synset / f"{synset}_{split}.JPEG", at)


def kaggle(root: Path) -> None:
    inside = root / "ILSVRC/Data/CLS-LOC"
    for at, synset in enumerate(("n01", "n02", "n03")):
        picture(inside / "train" / synset / f"{synset}_1.JPEG", at)
        picture(inside / f"val/ILSVRC2012_val_{at}.JPEG", at)
    (root / "LOC_synset_mapping.txt").write_text("n01 tench, Tinca tinca\nn02 crane\nn03 crane\n")
    said = "".join(f"ILSVRC2012_val_{at},n0{3 - at} 1 2 3 4 \n" for at in range(3))
    (root / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\n{said}")


def ade20k(root: Path) -> None:
    inside = root / "ADEChallengeData2016"
    for split in ("training", "validation"):
        picture(inside / f"images/{split}/ADE_1.jpg", 7, (2, 2))
        mask = inside / f"annotations/{split}/ADE_1.png"
        mask.parent.mkdir(parents=True)
        Image.fromarray(np.array([[0, 1], [150, 2]], dtype=np.uint8)).save(mask)
    (inside / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t1\t1\twall\n2\t0.1\t1\t1\tbuilding, edifice\n"
    )


def shards(root: Path) -> None:
    for shard in range(2):
        with tarfile.open(root / f"0000{shard}.tar", "w") as tar:
            for at in range(2):
                name = f"0000{shard}000{at}"
                picture(root / "tmp.jpg", 10 * shard + at)
                for ending, content in (
                    ("jpg", (root / "tmp.jpg").read_bytes()),
                    ("txt", f"c{shard}{at}".encode()),
                    ("json", b"{}"),
                ):
                    entry = tarfile.TarInfo(f"{name}.{ending}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))


def folders(root: Path) -> None:
    for at in range(2):
        picture(root / f"train/0000{at}/{at}.jpg", at)
        (root / f"train/0000{at}/{at}.txt").write_text(f"c{at}\n")
        (root / f"train/0000{at}/{at}.json").write_text("{}")


def listed(root: Path) -> None:
    picture(root / "images/a.jpg", 3)
    dump(root / "cc3m.json", [{"image": "images/a.jpg", "caption": "a cat"}])


TEN = ["a0", "a1", "a2"] * 3 + ["a0"]
PUBLISHED: list[tuple[str, Callable[[Path], None], dict[str, Any], list[dict[str, Any]]]] = [
    ("vqav2", vqav2, {}, [{"image": 9, "question": "What is it?", "question_id": str(9000 + at), "answers": TEN} for at in range(2)]),
    ("vqav2", vqav2, {"split": "val", "limit": 1}, [{"image": 42, "question": "What is it?", "question_id": "42000", "answers": TEN}]),
    ("vqav2", vqav2, {"split": "test-dev"}, [{"image": 1, "question": "Where?", "question_id": "1000"}]),
    ("okvqa", lambda root: vqav2(root, ""), {"split": "val", "limit": 1}, [{"image": 42, "question": "What is it?", "question_id": "42000", "answers": TEN}]),
    ("gqa", gqa, {"split": "val"}, [{"image": 1, "question": "Is it red?", "question_id": "07", "answers": ["no"]},
                                    {"image": 2, "question": "What is it?", "question_id": "08", "answers": ["cup"]}]),
    ("gqa", gqa, {"balanced": False, "limit": 1}, [{"image": 1, "question": "Is it red?", "question_id": "07", "answers": ["no"]}]),
    ("nocaps", nocaps, {}, [{"image": at, "question_id": str(at), "captions": [f"caption {n}" for n in range(at, 20, 2)]} for at in range(2)]),
    ("nocaps", nocaps, {"domain": "out-domain"}, [{"image": 1, "question_id": "1", "captions": [f"caption {n}" for n in range(1, 20, 2)]}]),
    ("coco_karpathy", karpathy("coco", "val2014"), {}, [{"image": at, "captions": [f"A {at}.", f"B {at}."]} for at in (0, 1, 4)]),
    ("coco_karpathy", karpathy("coco", "val2014"), {"split": "test"}, [{"image": 3, "captions": ["A 3.", "B 3."]}]),
    ("coco_karpathy", blip_lists, {}, [{"image": 0, "captions": ["c0", "c2"]}, {"image": 1, "captions": ["c1", "c3"]}]),
    ("coco_karpathy", blip_lists, {"split": "val"}, [{"image": 1, "captions": ["a", "b", "c"]}]),
    ("flickr30k", karpathy("flickr30k", "flickr30k-images"), {"split": "val"}, [{"image": 2, "captions": ["A 2.", "B 2."]}]),
    ("flickr30k", karpathy("flickr30k", "flickr30k_images"), {"split": "val"}, [{"image": 2, "captions": ["A 2.", "B 2."]}]),
    ("flickr30k", flickr_lists, {}, [{"image": 1, "captions": ["c1"]}]),
    ("nlvr2", nlvr2, {}, [{"images": [10 * at, 10 * at + 1], "text": f"s{at}", "label": 1 - at} for at in range(2)]),
    ("nlvr2", nlvr2, {"split": "dev"}, [{"images": [10, 11], "text": "s0", "label": 1}]),
    ("nlvr", nlvr, {"split": "dev"}, [{"image": shade, "text": f"s{shade // 20}", "label": 1 - shade // 20} for shade in (10, 15, 20)]),
    ("imagenet", imagenet, {"split": "val"}, [{"image": 1, "label": 0}, {"image": 0, "label": 1}]),
    ("imagenet", kaggle, {"split": "val"}, [{"image": at, "label": 2 - at} for at in range(3)]),
    ("imagenet", kaggle, {}, [{"image": at, "label": at} for at in range(3)]),
    ("ade20k", ade20k, {"split": "val"}, [{"image": 7, "mask": [[IGNORED, 0], [149, 1]]}]),
    ("cc3m", shards, {}, [{"image": 10 * shard + at, "captions": [f"c{shard}{at}"]} for shard in range(2) for at in range(2)]),
    ("cc3m", folders, {}, [{"image": at, "captions": [f"c{at}"]} for at in range(2)]),
    ("cc3m", listed, {}, [{"image": 3, "captions": ["a cat"]}]),
]  # fmt: skip


def seen(data: Data) -> list[dict[str, Any]]:
    """The rows, with images by their shades and masks by their classes."""
    found = []
    for row in data.read():
        where, values = row["where"], {name: value for name, value in row.items() if name != "where"}
        assert where
        for name, value in values.items():
            if name == "image":
                values[name] = shade(value)
            if name == "images":
                values[name] = [shade(one) for one in value]
            if name == "mask":
                values[name] = np.asarray(open_mask(value, where, data.first_class)).tolist()
        found.append(values)
    return found


@pytest.mark.parametrize(
    ("layout", "make", "settings", "expected"), PUBLISHED, ids=lambda part: part if isinstance(part, str) else ""
)
def test_a_published_layout_is_read(
    layout: str, make: Callable[[Path], None], settings: dict[str, Any], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    make(tmp_path)
    data = made({"layout": layout, "root": str(tmp_path), **settings})
    data.check([name for name in expected[0] if name != "question_id"])
    assert seen(data) == expected


def test_classes_have_names(tmp_path: Path) -> None:
    for make, names in ((kaggle, ["tench", "crane (n02)", "crane (n03)"]), (imagenet, ["n01", "n02"])):
        (tmp_path / make.__name__).mkdir()
        make(tmp_path / make.__name__)
        assert made({"layout": "imagenet", "root": str(tmp_path / make.__name__)}).class_names() == names
    ade20k(tmp_path)
    assert made({"layout": "ade20k", "root": str(tmp_path)}).mask_classes() == ["wall", "building"]


PUBLISHED_NAMES = sorted({layout for layout, *_ in PUBLISHED})


@pytest.mark.parametrize("layout", PUBLISHED_NAMES)
def test_what_a_published_layout_lacks_is_named(layout: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PrunusError, match="there is no such file or folder"):
        made(
            {"layout": layout, "root": str(tmp_path / "absent"), **({"split": "val"} if layout == "nocaps" else {})}
        ).read()
    with pytest.raises(PrunusError, match=r"root = .*(is below it|it holds no shards)"):
        made(
            {"layout": layout, "root": str(tmp_path / "empty")} | ({"split": "dev"} if layout == "nlvr" else {})
        ).read()
    with pytest.raises(ValueError, match=r"split = 'trian': .*[tT]here are"):
        made({"layout": layout, "root": str(tmp_path), "split": "trian"})


@pytest.mark.parametrize("layout", PUBLISHED_NAMES)
def test_of_a_published_layout_every_file_that_is_missing_is_named(layout: str, tmp_path: Path) -> None:
    _, make, settings, expected = next(case for case in PUBLISHED if case[0] == layout)
    spec = {"layout": layout, "root": str(tmp_path), **settings}
    make(tmp_path)
    home = type(made(spec)).home  # type: ignore[attr-defined]
    needs = [name for name in expected[0] if name != "question_id"]
    for file in [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]:
        aside = tmp_path.parent / f"{tmp_path.name}-aside"
        file.rename(aside)
        said = refusal(made(spec), needs)
        if said is None:  # of a folder of pictures nothing says what it had
            assert layout in ("imagenet", "cc3m") or file not in needed(made(spec)), file
        else:
            assert any(name in said for name in (file.name, file.stem, file.parent.name)), f"{file}: {said}"
            assert home in said or file.suffix.lower() not in (".json", ".csv"), f"{file}: {said}"
        aside.rename(file)


def refusal(data: Data, needs: list[str]) -> str | None:
    try:
        data.check(needs)
    except PrunusError as error:
        return str(error)
    return None


def needed(data: Data) -> set[Path]:
    return {*data.inputs(), *(Path(row["image"]["path"]) for row in data.read() if row.get("image"))}


def test_files_of_another_layout_are_one_error(tmp_path: Path) -> None:
    vqav2(tmp_path)
    dump(tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json", [{"a": 1}])
    with pytest.raises(PrunusError, match="not laid out as vqav2 is"):
        made({"layout": "vqav2", "root": str(tmp_path)}).read()


def test_a_missing_image_of_a_published_layout_is_named_with_its_row(tmp_path: Path) -> None:
    vqav2(tmp_path)
    (tmp_path / "train2014/COCO_train2014_000000000009.jpg").unlink()
    with pytest.raises(PrunusError, match=r"questions.json, row 1: image = .*000000000009.jpg.*there is no such file"):
        made({"layout": "vqav2", "root": str(tmp_path)}).check(["image"])


def test_one_of_several_images_that_has_gone_since_is_named_with_its_row(tmp_path: Path) -> None:
    nlvr2(tmp_path)
    spec = {"layout": "nlvr2", "root": str(tmp_path)}
    made(spec).check(["images"])
    (tmp_path / "images/train/67/train-10-1-img0.png").unlink()
    with pytest.raises(PrunusError, match=r"train.json:2: images = .*train-10-1-img0.png.*no such file any more"):
        made(spec).check(["images"])


def test_a_mask_is_as_large_as_its_image(tmp_path: Path) -> None:
    ade20k(tmp_path)
    picture(tmp_path / "ADEChallengeData2016/images/training/ADE_1.jpg")
    with pytest.raises(PrunusError, match=r"mask = \(2, 2\): its image has 8 × 6 pixels"):
        made({"layout": "ade20k", "root": str(tmp_path)}).read()


def test_easy_vqa_is_read_from_its_package() -> None:
    pytest.importorskip("easy_vqa", reason="needs the packaged data: pip install 'prunus[demo]'")
    rows = made({"layout": "easy_vqa", "split": "test", "limit": 20}).read(["image", "question", "answers"])
    assert len(rows) == 20
    assert rows[0]["question"] == "what is the red shape?"
    assert rows[0]["answers"] == ["triangle"]
    assert open_image(rows[0]["image"]).size == (64, 64)


def table_rows(root: Path) -> list[dict[str, Any]]:
    for at in range(3):
        picture(root / f"images/{at}.png", at)
    return [
        {
            "image": f"images/{at}.png",
            "captions": [f"a {at}", "b"],
            "label": ["dog", "cat", "dog"][at],
            "split": "train",
        }
        for at in range(3)
    ]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_a_table_is_the_same_in_every_format(ending: str, tmp_path: Path) -> None:
    rows, file = table_rows(tmp_path), tmp_path / f"rows.{ending}"
    if ending == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif ending in ("csv", "tsv"):
        with open(file, "w", newline="") as text:
            writer = csv.writer(text, delimiter="," if ending == "csv" else "\t")
            writer.writerows(
                [list(rows[0]), *([json.dumps(c) if isinstance(c, list) else c for c in row.values()] for row in rows)]
            )
    elif ending == "json":
        dump(file, {"version": 1, "data": rows})
    else:
        lines(file, rows)
    data = made(str(file))
    data.check(["image", "captions", "label"])
    assert seen(data) == [{"image": at, "captions": [f"a {at}", "b"], "label": [1, 0, 1][at]} for at in range(3)]
    assert data.class_names() == ["cat", "dog"]
    assert data.read().features["label"].names == ["cat", "dog"]


@pytest.mark.parametrize(
    ("cell", "captions"),
    [
        ('["a cat", "it\'s one"]', ["a cat", "it's one"]),
        ("['a cat', \"it's one\"]", ["a cat", "it's one"]),
        ("('a cat', 'two')", ["a cat", "two"]),
        ("['a, b']", ["a, b"]),
        ("[laughs] a cat", ["[laughs] a cat"]),
        ("[laughs]", ["[laughs]"]),
        ("(a cat)", ["(a cat)"]),
    ],
)
def test_a_cell_holds_a_list_as_json_or_python_writes_it(cell: str, captions: list[str], tmp_path: Path) -> None:
    with open(tmp_path / "rows.csv", "w", newline="") as text:
        csv.writer(text).writerows([["captions"], [cell]])
    assert made(str(tmp_path / "rows.csv")).read()[0]["captions"] == captions


@pytest.mark.parametrize("cell", ["['a cat' 'two']", "['it's one']", '["a cat", "two]', "['a'\n 'b']"])
def test_a_damaged_list_in_a_cell_is_no_text(cell: str, tmp_path: Path) -> None:
    with open(tmp_path / "rows.csv", "w", newline="") as text:
        csv.writer(text).writerows([["captions"], [cell]])
    with pytest.raises(PrunusError, match="its list cannot be read"):
        made(str(tmp_path / "rows.csv")).read()


def test_columns_are_renamed_chosen_and_left_out(tmp_path: Path) -> None:
    for at in range(4):
        picture(tmp_path / f"pictures/{at}.png", at)
    rows = [
        {"file": f"{at}.png", "what": f"a {at}", "part": "train" if at < 3 else "val", "text": 5} for at in range(4)
    ]
    lines(tmp_path / "rows.jsonl", rows)
    spec = {"layout": "table", "files": [str(tmp_path / "*.jsonl")], "root": str(tmp_path / "pictures"), "only": {"part": "train"},
            "columns": {"image": "file", "captions": "what", "text": None}, "limit": 2}  # fmt: skip
    assert seen(made(spec)) == [{"image": at, "captions": [f"a {at}"]} for at in range(2)]
    with pytest.raises(
        PrunusError, match=r"rows.jsonl:1: text = 5: it is a number; give text; .*columns: \{text: null\}"
    ):
        made({**spec, "columns": {"image": "file"}}).read()


@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        ([True, False], [1, 0], ["false", "true"]),
        ([3, 0], [3, 0], None),
        (["b", "a"], [1, 0], ["a", "b"]),
        ([2, -1], [2, None], None),
    ],
)
def test_labels_are_truths_numbers_or_names(
    labels: list[Any], numbers: list[int], names: list[str] | None, tmp_path: Path
) -> None:
    lines(tmp_path / "a.jsonl", [{"label": label} for label in labels])
    data = made(str(tmp_path / "a.jsonl"))
    assert list(data.read()["label"]) == numbers
    assert data.class_names() == names


def test_names_of_classes_are_read_from_parquet(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"y": datasets.ClassLabel(names=["zebra", "ant"]), "image": datasets.Image()})
    picture(tmp_path / "a.png", 9)
    found = datasets.Dataset.from_dict({"y": [1, 0], "image": [str(tmp_path / "a.png")] * 2}, features=features)
    found.to_parquet(str(tmp_path / "a.parquet"))
    data = made({"layout": "table", "files": str(tmp_path / "a.parquet"), "columns": {"label": "y"}})
    assert data.class_names() == ["zebra", "ant"]
    assert seen(data) == [{"image": 9, "label": 1}, {"image": 9, "label": 0}]


CHAT = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "A cat."}]


@pytest.mark.parametrize(
    "messages",
    [
        CHAT,
        [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}],
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}, {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}],
    ],
)  # fmt: skip
def test_chats_are_read_as_people_write_them(messages: list[dict[str, Any]], tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", [{"messages": messages}])
    assert seen(made(str(tmp_path / "a.jsonl"))) == [{"messages": CHAT}]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (CHAT[:1], "last message is not the assistant's"),
        ([{"role": "robot", "content": "a"}], "the role 'robot'"),
        ("hello", "it is no chat"),
        ([{"role": "user", "content": ""}, CHAT[1]], "it is empty"),
        ([{"role": "user", "content": [{"type": "sound"}]}, CHAT[1]], "neither a text nor an image"),
    ],
)
def test_chats_that_are_none_are_refused(messages: Any, said: str, tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", [{"messages": messages}])
    with pytest.raises(PrunusError, match=said):
        made(str(tmp_path / "a.jsonl")).read()


def test_a_folder_of_images_has_classes_a_table_or_neither(tmp_path: Path) -> None:
    for at, name in enumerate(("b", "a")):
        picture(tmp_path / f"classes/{name}/deep/{at}.png", at)
    (tmp_path / "classes/a/notes.txt").write_text("no image")
    data = made({"layout": "imagefolder", "folder": str(tmp_path / "classes")})
    assert (seen(data), data.class_names()) == ([{"image": 1, "label": 0}, {"image": 0, "label": 1}], ["a", "b"])
    assert seen(made({"layout": "imagefolder", "folder": str(tmp_path / "classes/a/deep")})) == [{"image": 1}]
    picture(tmp_path / "classes/beside.png", 2)
    spec = {"layout": "imagefolder", "folder": str(tmp_path / "classes")}
    assert [row["image"] for row in seen(made(spec))] == [1, 0, 2]
    with pytest.raises(PrunusError, match=r"beside.png: label = None"):
        made(spec).read(["label"])
    assert [row["label"] for row in made({**spec, "on_broken": "skip"}).read(["label"])] == [0, 1]
    (tmp_path / "classes/beside.png").unlink()
    lines(tmp_path / "classes/metadata.jsonl", [{"file_name": "b/deep/0.png", "caption": "a cat"}])
    data = made({"layout": "imagefolder", "folder": str(tmp_path / "classes"), "columns": {"captions": "caption"}})
    assert seen(data) == [{"image": 0, "captions": ["a cat"]}]
    with pytest.raises(PrunusError, match="it is a file"):
        made({"layout": "imagefolder", "folder": str(tmp_path / "classes/metadata.jsonl")}).read()


def test_a_folder_of_datasets_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    picture(tmp_path / "a.png", 5)
    rows = {"image": [str(tmp_path / "a.png")] * 3, "sentence": ["x", "y", "z"]}
    found = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    found.save_to_disk(str(tmp_path / "alone"))
    datasets.DatasetDict({"dev": found}).save_to_disk(str(tmp_path / "splits"))
    (tmp_path / "files").mkdir()
    found.to_parquet(str(tmp_path / "files/train.parquet"))
    for folder, split in (("alone", "train"), ("splits", "dev"), ("files", "train")):
        spec = {
            "layout": "hub",
            "path": str(tmp_path / folder),
            "split": split,
            "columns": {"text": "sentence"},
            "limit": 2,
        }
        assert seen(made(spec)) == [{"image": 5, "text": "x"}, {"image": 5, "text": "y"}]
    with pytest.raises(PrunusError, match="there is no such split; there are dev"):
        made({"layout": "hub", "path": str(tmp_path / "splits")}).read()
    with pytest.raises(PrunusError, match="it cannot be loaded"):
        made({"layout": "hub", "path": "nobody/nothing-at-all"}).read()


def test_texts_are_documents_or_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.txt").write_text("three")
    both = {"layout": "text", "files": str(tmp_path / "*.txt")}
    assert seen(made(both)) == [{"text": "one\n\ntwo\n"}, {"text": "three"}]
    assert seen(made({**both, "lines": True})) == [{"text": text} for text in ("one", "two", "three")]


def test_nothing_is_read_twice_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines(tmp_path / "a.jsonl", [{"text": "a"}])
    data = made(str(tmp_path / "a.jsonl"))
    assert seen(data) == seen(made(str(tmp_path / "a.jsonl"))) == [{"text": "a"}]
    with monkeypatch.context() as patched:
        patched.setattr(type(data), "rows", lambda self: pytest.fail("the file was read again"))
        assert seen(made(str(tmp_path / "a.jsonl"))) == [{"text": "a"}]
    lines(tmp_path / "a.jsonl", [{"text": "b"}, {"text": "c"}])
    assert seen(made(str(tmp_path / "a.jsonl"))) == [{"text": "b"}, {"text": "c"}]


def test_rows_are_mapped_and_not_held_in_memory(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", [{"text": "a", "label": 1}])
    rows = made(str(tmp_path / "a.jsonl")).read()
    assert len(rows.cache_files) == 2
    assert all(file["filename"].endswith(".arrow") for file in rows.cache_files)


def test_the_page_lists_every_column_and_every_layout() -> None:
    page = (Path(__file__).parents[1] / "docs/your-own-data.md").read_text()
    for name, column in COLUMNS.items():
        assert f"| `{name}` | {column.kind} | {column.holds} |\n" in page
    for layout in (*PUBLISHED_NAMES, "table", "imagefolder", "hub", "easy_vqa", "text"):
        assert f"`{layout}`" in page
    code = (Path(__file__).parent / "strangers/own_layout.py").read_text()
    assert f"```python\n{code}```" in page


def test_a_layout_of_one_s_own_is_known_once_it_is_imported(tmp_path: Path) -> None:
    load_extension(Path(__file__).parent / "strangers/own_layout.py")
    picture(tmp_path / "a.png", 4)
    (tmp_path / "pairs.txt").write_text("a.png: a cat\n")
    assert seen(made({"layout": "pairs", "file": str(tmp_path / "pairs.txt")})) == [{"image": 4, "captions": ["a cat"]}]


@pytest.mark.parametrize(
    ("file", "columns", "count"),
    [("flickr8k-1k", ["image", "captions"], 1000), ("nlvr-dev", ["image", "label"], 1978), ("camvid-val", ["image", "mask"], 101),
     ("imagenette-160-val", ["image", "label"], 1000)],
)  # fmt: skip
def test_real_data_are_read(file: str, columns: list[str], count: int) -> None:
    path = FOLDER / f"data/{file}.parquet"
    if not path.exists():
        pytest.skip("the data for experiments are not here")
    data = made(str(path))
    rows = data.read(columns)
    assert len(rows) == count
    open_image(rows[0]["image"], rows[0]["where"])
