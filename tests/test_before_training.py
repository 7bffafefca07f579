"""What data, task and model cannot do together is one error before the first weight changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prunus import PrunusError
from prunus.cli.narrowing import sweep
from prunus.evaluation import evaluate_here, read_task
from prunus.recipe import Measure, parse_recipe
from prunus.report import side_by_side
from prunus.run import check_all, run
from prunus.tasks import Noise
from tests.lookers import captioned, coloured, judged, masked, saved

pytestmark = pytest.mark.usefixtures("own_cache")


def refused(task: dict[str, Any], model: Path, match: str) -> None:
    found = read_task(json.dumps(task))

    def check() -> None:
        found.check()
        found.check_model(model)

    with pytest.raises(PrunusError, match=match):
        check()


def changed(file: Path, place: int, **values: Any) -> str:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[place].update(values)
    file.write_text("\n".join(json.dumps({name: one for name, one in row.items() if one is not None}) for row in rows))
    return str(file)


def test_classes_of_masks_that_the_model_does_not_know(tmp_path: Path) -> None:
    model, file = saved("segmenter", tmp_path / "model"), masked(tmp_path / "data")
    Image.new("L", (26, 20), 4).save(tmp_path / "data" / "2-mask.png")
    task = {"name": "segmentation", "train": str(file)}
    refused(task, model, r"task\.train: .*rows\.jsonl:3: mask = 4: the model knows 4 classes, .*ignore: \[4\]")
    read_task(json.dumps({**task, "ignore": [4]})).check_model(model)
    later = read_task(json.dumps({**task, "ignore": [4]})).for_model(model)
    Image.new("L", (26, 20), 9).save(tmp_path / "data" / "2-mask.png")
    with pytest.raises(PrunusError, match=r"rows\.jsonl:3: mask = 9"):
        later.mask(later.rows("train")[2])  # type: ignore[attr-defined]


def test_labels_that_the_model_does_not_know(tmp_path: Path) -> None:
    rows = []
    for number, path in enumerate(sorted(coloured(tmp_path / "data").rglob("*.png"))):
        rows.append({"image": str(path), "label": 4 if number == 5 else 1})
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    match = r"task\.evaluation: .*rows\.jsonl:6: label = 4: there are 4 classes"
    for model, more in (("vit", {}), ("clip", {"classes": ["red", "green", "blue", "white"]})):
        task = {"name": "classification", "evaluation": str(file), **more}
        refused(task, saved(model, tmp_path / model), match)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"images": None}, r"rows\.jsonl:3: images = None: the row has no images or image"),
        ({"images": ["0-0.png"] * 3}, r"rows\.jsonl:3: images = 3: the model reads two pictures"),
        ({"label": 2}, r"rows\.jsonl:3: label = 2"),
    ],
)
def test_statements_that_the_model_cannot_judge(values: dict[str, Any], match: str, tmp_path: Path) -> None:
    file = judged(tmp_path / "data")
    if "label" in values:
        file.write_text(file.read_text().replace("true", "1").replace("false", "0"))
    refused({"name": "reasoning", "train": changed(file, 2, **values)}, saved("blip_nlvr", tmp_path / "model"), match)


def test_statements_without_any_picture(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "the left is red", "label": true}\n')
    refused(
        {"name": "reasoning", "train": str(tmp_path / "rows.jsonl")}, saved("blip_nlvr", tmp_path / "model"), "images or image = None: there is no such column",
    )  # fmt: skip


@pytest.mark.parametrize("step", ["prune", "narrow"])
def test_more_calibration_than_there_is(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the dense model is trained."""
    folder = coloured(tmp_path / "data")
    method = "{method: wanda, sparsity: 0.5}" if step == "prune" else "{ratio: 0.5}"
    recipe = parse_recipe(
        "model: {random: {model_type: vit, architectures: [ViTForImageClassification], num_labels: 4, hidden_size: 8, num_hidden_layers: 1, "
        "num_attention_heads: 2, intermediate_size: 8, image_size: 16, patch_size: 8}, "
        "train: [{steps: 1, batch_size: 4, learning_rate: 0.001}]}\n"
        f"task: {{name: classification, train: &data {{layout: imagefolder, folder: '{folder}'}}, evaluation: *data}}\n"
        f"steps: [{{step: {step}, method: {method}, calibration: {{samples: 25, batch_size: 8}}}}]\noutput: {tmp_path / 'run'}\n",
        "recipe",
    )
    monkeypatch.setattr("prunus.run.dense_folder", lambda *given: pytest.fail("a model was made"))
    with pytest.raises(PrunusError, match=r"steps\.0\.calibration\.samples = 25: there are 24 training items"):
        run(recipe)
    Noise().check_calibration(1000)


@pytest.mark.parametrize("split", ["train", "evaluation"])
def test_a_split_that_is_not_there(split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a model is loaded."""
    model, file = saved("vit", tmp_path / "model"), str(coloured(tmp_path / "data", 4))
    given = {
        "train": None,
        "evaluation": None,
        "train" if split == "evaluation" else "evaluation": {"layout": "imagefolder", "folder": file},
    }
    settings = {"name": "classification", **given}
    said = rf"task\.{split} = None: there are no such data"
    recipe = {
        "model": {"path": str(model)}, "task": settings, "output": str(tmp_path / "run"),
        "steps": [{"step": "search", "method": {"method": "upop", "ratio": 0.5}, "train": {"steps": 1, "learning_rate": 0.001}}],
    }  # fmt: skip
    with pytest.raises(PrunusError, match=said):
        check_all(parse_recipe(json.dumps(recipe), "recipe"))
    if split == "evaluation":
        for place in ("evaluation.evaluate", "report.sides", "cli.narrowing"):
            monkeypatch.setattr(f"prunus.{place}.load_model", lambda *given: pytest.fail("a model was loaded"))
        task = read_task(json.dumps(settings))
        with pytest.raises(PrunusError, match=said):
            evaluate_here(model, task, 1)
        with pytest.raises(PrunusError, match=said):
            side_by_side([model], task, Measure())
        with pytest.raises(PrunusError, match=said):
            sweep(str(model), json.dumps(settings), out=tmp_path / "sweep")


def test_a_model_that_has_no_loss(tmp_path: Path) -> None:
    model, file = saved("blip_itm", tmp_path / "model"), str(captioned(tmp_path / "data", 4))
    training: Any = {"steps": 1, "learning_rate": 0.001}
    calibration = {"samples": 2, "batch_size": 2}
    prune: Any = {"step": "prune", "method": {"method": "wanda", "sparsity": 0.5}, "calibration": calibration}
    recipe: Any = {
        "model": {"path": str(model)}, "task": {"name": "retrieval", "train": file, "evaluation": file}, "output": str(tmp_path / "run"),
    }  # fmt: skip
    for number, steps in (
        (0, [{"step": "search", "method": {"method": "upop", "ratio": 0.5}, "train": training}]),
        (0, [{**prune, "method": {"method": "wanda"}, "allocate": {"method": "ecoflap"}}]),
        (1, [prune, {"step": "repair", "method": {"method": "masked_lora"}, "train": training}]),
    ):
        with pytest.raises(
            PrunusError, match=rf"steps\.{number}\.loss = 'BlipForImageTextRetrieval': .*BlipForRetrievalTraining"
        ):
            check_all(parse_recipe(json.dumps({**recipe, "steps": steps}), "recipe"))
    check_all(parse_recipe(json.dumps({**recipe, "steps": [prune]}), "recipe"))
