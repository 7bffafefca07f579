"""Runs end to end, at a size that takes seconds: files, report, caching, and death by SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from prunus import Plan, PrunusError
from prunus.cli import app
from prunus.evaluation.warm import can_fork
from prunus.recipe import load_recipe
from prunus.report import Report
from prunus.run import finished as done
from prunus.run import run
from tests.forked import child, ended

pytest.importorskip("easy_vqa", reason="needs the packaged data: pip install 'prunus[demo]'")
pytestmark = pytest.mark.long

TRAINING = {"steps": 6, "batch_size": 4, "learning_rate": 1e-4, "save_every": 2, "evaluate_every": 3}
RECIPE = {
    "model": {"warm_start": {"vision_layers": 1, "text_layers": 1}, "train": [TRAINING]},
    "task": {"name": "easy_vqa", "image_size": 28, "matching_steps": 2},
    "steps": [
        {"step": "search", "method": {"ratio": 0.5, "interval": 1}, "train": TRAINING},
        {"step": "retrain", "train": TRAINING},
    ],
    "measure": {"batch_size": 2, "repeats": 1},
    "evaluate_limit": 40,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNUS_CACHE", str(folder / "cache"))
        yield folder


def recipe_file(folder: Path, name: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "output": str(folder / name)}))
    return path


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    run(load_recipe(recipe_file(place, "whole")))
    return place / "whole"


def weights(folder: Path) -> dict:
    return load_file(folder / "2-retrain" / "model" / "model.safetensors")


def test_a_run_folder_holds_everything(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"recipe.yaml", "report.json", "report.html", "retained.png", "course.png", "1-search", "2-retrain"} <= names
    suffixes = {path.suffix for path in (finished / "2-retrain" / "model").iterdir()}
    assert suffixes == {".json", ".safetensors", ".md"}
    report = Report.load(finished)
    assert report.ratio == pytest.approx(0.5, abs=1e-3)
    assert report.models["compressed"]["parameters"]["total"] < report.models["dense"]["parameters"]["total"]
    for kind in ("parameters", "multiply_accumulates"):
        assert {"vision", "text", "decoder", "total"} <= set(report.models["dense"][kind])
    assert report.courses[0]["ratio"][-1][2] == pytest.approx(0.5, abs=1e-3)
    page = (finished / "report.html").read_text()
    assert page.count("data:image/png") == 3
    assert page.count("data:image/jpeg") == len(report.samples) == 6
    assert {sample.right for sample in report.samples} & {"yes", "no"}
    assert "BlipForQuestionAnswering.from_pretrained" in report.loading


def test_a_finished_run_is_not_run_again(finished: Path) -> None:
    before = (finished / "2-retrain" / "model" / "model.safetensors").stat().st_mtime_ns
    run(load_recipe(finished.parent / "whole.yaml"))
    assert (finished / "2-retrain" / "model" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "same"),
    [("steps.0.train.workers=2", True), ("model.train.0.workers=1", True), ("steps.0.method.ratio=0.4", False), ("seed=3", False),
     ("steps.0.train.steps=9", False), ("task.image_size=42", False), ("measure.repeats=2", False)],
)  # fmt: skip
def test_however_a_run_is_watched_and_fed_it_is_the_same_one(finished: Path, change: str, same: bool) -> None:
    recipe = load_recipe(finished.parent / "whole.yaml", (change,))
    if same:
        assert run(recipe) is not None
        assert load_recipe(finished / "recipe.yaml") == recipe
        assert done(recipe) is not None
    else:
        with pytest.raises(PrunusError, match="another recipe"):
            run(recipe)
        assert done(recipe) is None


@pytest.mark.skipif(not can_fork(), reason="processes cannot fork here")
def test_killed_anywhere_it_ends_with_the_same_plan_and_bits(finished: Path, place: Path) -> None:
    path, folder = recipe_file(place, "killed"), place / "killed"
    compress = partial(app, ["compress", str(path)], standalone_mode=False)
    for sign in (
        "1-search/checkpoints/checkpoint-2",
        "1-search/checkpoints/checkpoint-4",
        "2-retrain/checkpoints/checkpoint-2",
    ):
        process = child(compress, seconds=300)
        while not (folder / sign).exists():
            assert os.waitpid(process, os.WNOHANG) == (0, 0), f"the run ended before {sign}"
            time.sleep(0.01)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        assert not (folder / "2-retrain" / "model").exists()
    assert ended(compress) == 0
    assert Plan.load(folder / "1-search" / "plan.json") == Plan.load(finished / "1-search" / "plan.json")
    ours, theirs = weights(folder), weights(finished)
    assert ours.keys() == theirs.keys()
    assert all((ours[key] == theirs[key]).all() for key in ours)


def test_the_commands_read_what_a_run_left(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def call(*words: str) -> str:
        app(list(words), standalone_mode=False)
        return capfd.readouterr().out

    model = str(finished / "2-retrain" / "model")
    table = call("inspect", model)
    assert "vision.attention" in table
    assert "narrowed by prunus" in table
    task = json.dumps(RECIPE["task"])
    figures = json.loads(call("evaluate", model, "--task", task, "--limit", "20", "--json", "-").splitlines()[-1])
    assert 0 <= figures["metrics"]["accuracy"] <= 1
    assert "parameters, total" in call("report", str(finished))
