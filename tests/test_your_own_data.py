"""The recipes of docs/your-own-data.md, as they stand there, on a folder of pictures and a small model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from prunus import PrunusError
from prunus.checkpoint import load_model
from prunus.evaluation import evaluate_here, read_task
from prunus.recipe import Recipe
from prunus.run import run
from tests.speakers import pictures, save

PAGE = (Path(__file__).parents[1] / "docs/your-own-data.md").read_text()
RECIPES: list[dict[str, Any]] = [
    recipe for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "steps" in (recipe := yaml.safe_load(text))
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_reports: None) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def small(recipe: dict[str, Any]) -> Recipe:
    """The same with a small model and few steps; the data lie where the page says."""
    model = save("blip_captions", Path("model"))
    rows = pictures(Path("photos")).read_text().splitlines()
    Path("photos/train.jsonl").write_text("\n".join(rows[:6]))
    Path("photos/test.jsonl").write_text("\n".join(rows[6:]))
    steps = [dict(step) for step in recipe["steps"]]
    for step in steps:
        if "train" in step:
            step["train"] = {**step["train"], "steps": 2, "batch_size": 2, "bf16": False}
        if "calibration" in step:
            step["calibration"] = {"samples": 4, "batch_size": 2}
    return Recipe.model_validate(
        {**recipe, "model": {"path": str(model)}, "steps": steps, "measure": {"batch_size": 2, "repeats": 1}}
    )


def test_both_roads_are_on_the_page() -> None:
    assert [[step["step"] for step in recipe["steps"]] for recipe in RECIPES] == [
        ["search", "retrain"],
        ["prune", "repair"],
    ]
    for recipe in RECIPES:
        Recipe.model_validate(recipe)


def test_the_first_is_the_tutorial_s_with_a_model_of_the_hub_and_is_carried_out_there() -> None:
    tutorial = (Path(__file__).parents[1] / "docs/tutorials/your-own-pictures.md").read_text()
    (written,) = re.findall(r"```yaml\n(.*?)```", tutorial, re.DOTALL)
    first, second = ({**recipe, "model": None} for recipe in (yaml.safe_load(written), RECIPES[0]))
    for recipe in (first, second):
        recipe["steps"] = [step["step"] for step in recipe["steps"]]
    assert first == second


@pytest.mark.long
def test_the_second_goes_from_pictures_to_a_report() -> None:
    pytest.importorskip("pycocoevalcap.cider.cider")
    recipe = small(RECIPES[1])
    report = run(recipe)
    assert (recipe.output / "report.html").exists()
    assert [set(sample.said) for sample in report.samples] == [{"dense", "compressed"}] * len(report.samples)
    assert all(sample.right and sample.pictures for sample in report.samples)
    assert {"cider"} <= set(report.models["compressed"]["metrics"])
    folder = recipe.output / "2-repair" / "model"
    load_model(folder)
    asked = re.search(r"--task '(\{.*?\})'", PAGE)
    assert asked
    found = evaluate_here(folder, read_task(asked[1], "--task"), 2)
    assert "cider" in found.metrics


def test_what_is_wrong_with_a_row_is_said_before_anything_is_trained() -> None:
    recipe = small(RECIPES[0])
    rows = [json.loads(line) for line in Path("photos/train.jsonl").read_text().splitlines()]
    for change, said in (
        ({"image": "c.jpg"}, r"task.train: photos/train.jsonl:4: image = '.*photos/c.jpg': there is no such file"),
        (
            {"captions": ""},
            r"task.train: photos/train.jsonl:4: captions = '': it is empty; write it, or leave the row out",
        ),
    ):
        Path("photos/train.jsonl").write_text(
            "\n".join(json.dumps(row | change if place == 3 else row) for place, row in enumerate(rows))
        )
        with pytest.raises(PrunusError, match=said):
            run(recipe)
        assert not recipe.output.exists()
