"""Rows that are kept follow their data: files, folders, the code of a layout, the hub's commits, pictures that were mended."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants
from PIL import Image
from pydantic import TypeAdapter
from rich.console import Console

from prunus.data import AnyData, Data
from prunus.extensions import load_extension
from prunus.recipe import parse_recipe
from prunus.sources import dense_folder

ADAPTER: TypeAdapter[Data] = TypeAdapter(AnyData)


pytestmark = pytest.mark.usefixtures("own_cache")


def made(**spec: Any) -> Data:
    return ADAPTER.validate_python(spec)


def picture(path: Path, shade: int = 0, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, shade, shade)).save(path)
    return path


def test_a_relative_root_is_another_one_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.csv").write_text("image\na.png\n")
    for number, place in enumerate(("here", "there")):
        picture(tmp_path / place / "pictures" / "a.png", number)
    seen = []
    for place in ("here", "there"):
        monkeypatch.chdir(tmp_path / place)
        seen.append(made(layout="table", files=str(tmp_path / "rows.csv"), root="pictures").read()[0]["image"]["path"])
    assert seen == [str(tmp_path / place / "pictures" / "a.png") for place in ("here", "there")]


def test_an_edited_layout_reads_its_rows_anew(tmp_path: Path) -> None:
    code = Path(__file__).parent / "strangers" / "own_layout.py"
    module = tmp_path / "edited_layout.py"
    module.write_text(code.read_text().replace("Pairs", "Edited").replace('"pairs"', '"edited"'))
    picture(tmp_path / "a.png")
    (tmp_path / "lines.txt").write_text("a.png: a cat\n")
    load_extension(str(module))
    spec = {"layout": "edited", "file": str(tmp_path / "lines.txt")}
    first = made(**spec).kept.folder
    assert made(**spec).kept.folder == first
    module.write_text(module.read_text() + "\n\ndef helper() -> None: ...\n")
    assert made(**spec).kept.folder != first


def test_a_layout_that_was_typed_in_is_known_by_its_functions(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    keys = []
    for word in ("before", "after"):
        found: dict[str, Any] = {"__name__": "typed_in"}
        exec(  # as in a console
            "from pathlib import Path\nfrom prunus.data import Data, Found\n"
            "class Typed(Data):\n    layout: str = 'typed'\n    file: str\n"
            f"    def inputs(self): return [Path(self.file)]\n    def rows(self): yield Found('1', Path(), dict({word}='x', text='y'))\n",
            found,
        )
        keys.append(found["Typed"](file=str(tmp_path / "file")).kept.folder)
    assert keys[0] != keys[1]


def test_pictures_that_are_added_to_nlvr_are_seen(tmp_path: Path) -> None:
    rows = [{"identifier": "1-0", "sentence": "there is one", "label": "true"}]
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "train.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    picture(tmp_path / "train" / "images" / "0" / "train-1-0-0.png")
    assert len(made(layout="nlvr", root=str(tmp_path)).read()) == 1
    picture(tmp_path / "train" / "images" / "0" / "train-1-0-1.png")
    assert len(made(layout="nlvr", root=str(tmp_path)).read()) == 2


def test_texts_beside_cc3m_s_pictures_are_read_anew(tmp_path: Path) -> None:
    picture(tmp_path / "00000" / "1.jpg")
    text = tmp_path / "00000" / "1.txt"
    text.write_text("a cat")
    assert made(layout="cc3m", root=str(tmp_path)).read()[0]["captions"] == ["a cat"]
    text.write_text("a fat cat")
    os.utime(text.parent, ns=(1, 1))
    assert made(layout="cc3m", root=str(tmp_path)).read()[0]["captions"] == ["a fat cat"]


def test_a_hub_s_new_commit_is_read_and_no_answer_keeps_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, commit = ["old"], ["1"]

    class Features(dict[str, Any]):
        pass

    class Remote:
        features = Features()

        def with_format(self, name: str) -> Any:
            return self

        def iter(self, size: int) -> Any:
            import pyarrow

            yield pyarrow.table({"text": list(words)})

    hub = "prunus.data.layouts.hub.Hub"
    monkeypatch.setattr(f"{hub}._data", Remote())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def info(self: Any, path: str, **more: Any) -> Any:
        if commit[0] == "offline":
            raise ConnectionError
        return type("Info", (), {"sha": commit[0]})

    monkeypatch.setattr(HfApi, "dataset_info", info)

    def said() -> str:
        return str(made(layout="hub", path="somebody/texts").read()[0]["text"])

    assert said() == "old"
    words[0] = "new"
    assert said() == "old"
    commit[0] = "offline"
    assert said() == "old"
    commit[0] = "2"
    assert said() == "new"


def test_rows_that_were_skipped_come_back_once_anything_of_them_is_mended(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png")
        Image.new("L", (8, 6)).save(tmp_path / f"{name}-mask.png")
    Image.new("L", (8, 7)).save(tmp_path / "b-mask.png")
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"image": f"{n}.png", "mask": f"{n}-mask.png"}) + "\n" for n in ("a", "b")))
    spec = {"layout": "table", "files": str(file), "on_broken": "skip"}
    assert len(made(**spec).read()) == 1
    Image.new("L", (8, 6)).save(tmp_path / "b-mask.png")
    assert len(made(**spec).read()) == 2


def test_a_dense_model_is_trained_anew_on_other_data(tmp_path: Path) -> None:
    for folder in ("0", "1"):
        for number in range(4):
            picture(tmp_path / "pictures" / folder / f"{number}.png", 200 * int(folder), (16, 16))
    vit = """{model_type: vit, architectures: [ViTForImageClassification], num_labels: 2, hidden_size: 8, num_hidden_layers: 1,
      num_attention_heads: 2, intermediate_size: 8, image_size: 16, patch_size: 8}"""
    recipe = parse_recipe(
        f"model: {{random: {vit}, train: [{{steps: 1, batch_size: 4, learning_rate: 0.001, bf16: false}}]}}\n"
        f"task: {{name: classification, train: {{layout: imagefolder, folder: '{tmp_path / 'pictures'}'}}, "
        f"evaluation: {{layout: imagefolder, folder: '{tmp_path / 'pictures'}'}}}}\n"
        "steps: [{step: search, method: {method: upop, ratio: 0.5}, train: {steps: 1, batch_size: 4, learning_rate: 0.001}}]\n"
        f"output: {tmp_path / 'run'}\n",
        "recipe",
    )

    def folder() -> Path:
        task = type(recipe.task).model_validate(recipe.task.model_dump())
        return dense_folder(recipe.model, task, 0, Console(quiet=True))

    first = folder()
    assert folder() == first
    picture(tmp_path / "pictures" / "0" / "more.png", 100, (16, 16))
    assert folder() != first
