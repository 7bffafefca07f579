"""The recipes for one's own data: each is read, its model built, and run on tiny tables of the same columns; and on the real data, where
those lie beside the project.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from prunus.recipe import Recipe, parse_recipe
from prunus.run import check, run
from tests.lookers import VOCABULARY, captioned, coloured, judged, masked, tokenizer
from tests.shared import FOLDER

RECIPES = sorted((Path(__file__).parents[1] / "recipes" / "your-data").glob("*.yaml"))
TINY = {
    "imagenette": coloured, "flickr8k-clip": captioned, "flickr8k-blip": captioned, "nlvr": lambda folder: judged(folder, alone=True),
    "camvid": masked,
}  # fmt: skip
"""Data with the same columns."""


def recipe(file: Path, changes: dict[str, Any]) -> Recipe:
    """A recipe with some of its fields replaced, by dotted names."""
    data = yaml.safe_load(file.read_text())
    for name, value in changes.items():
        *parents, last = name.split(".")
        place = data
        for key in parents:
            place = place[int(key)] if isinstance(place, list) else place[key]
        place[last] = value
    return parse_recipe(yaml.safe_dump(data), file.name)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_s_model_and_steps_fit(file: Path) -> None:
    check(recipe(file, {}))


@pytest.mark.usefixtures("quick_reports")
@pytest.mark.long
@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_runs_on_a_tiny_table(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    made = TINY[file.stem](tmp_path / "data")
    source: Any = {"layout": "imagefolder", "folder": str(made)} if made.is_dir() else str(made)
    training = {"steps": 1, "batch_size": 4, "learning_rate": 1e-3}
    changes: dict[str, Any] = {
        "task.train": source, "task.evaluation": source, "model.train": [training], "steps.0.train": training, "steps.1.train": training,
        "output": str(tmp_path / "run"), "evaluate_limit": 8, "measure": {"batch_size": 2, "repeats": 1},
    }  # fmt: skip
    if "processor" in yaml.safe_load(file.read_text())["task"]:
        tokenizer().save_pretrained(tmp_path / "words")
        changes["task.processor"] = str(tmp_path / "words")
        changes["model.random.text_config.eos_token_id"] = VOCABULARY.index("[SEP]")
    report = run(recipe(file, changes))
    assert 0 <= report.models["compressed"]["metrics"][report.headline] <= 1
    assert report.ratio == pytest.approx(0.5, abs=0.1)


@pytest.mark.long
@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_s_real_data_are_read(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = FOLDER / "data"
    if not data.exists():
        pytest.skip("the real data are not here: they lie outside of the project")
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(data)
    task = recipe(file, {}).task
    task.check()
    for field in ("train", "evaluation"):
        assert len(task.rows(field)) >= 100  # type: ignore[attr-defined]
    shutil.rmtree(tmp_path / "cache")
