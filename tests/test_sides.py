"""Models side by side: every figure of every model, by names that tell them apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from prunus import PrunusError, extract
from prunus.cli import app
from prunus.recipe import Measure
from prunus.report import side_by_side
from prunus.tasks import Noise
from tests.families import build
from tests.test_equivalence import random_plan


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_reports: None) -> list[Path]:
    """Two models in folders of one name; what new processes would find is found here."""
    case = build("llama", 0)
    small = extract(case.model, random_plan(case.model, 0))
    for model, name in ((case.model, "dense"), (small, "narrow")):
        model.save_pretrained(tmp_path / name / "model")
    return [tmp_path / name / "model" for name in ("dense", "narrow")]


def test_any_folders_are_put_side_by_side(folders: list[Path], tmp_path: Path) -> None:
    settings = json.dumps({"name": "noise", "items": 4, "length": 8})
    arguments = ["compare", *map(str, folders), "--task", settings, "--batch-size", "2", "--out", str(tmp_path / "out")]
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 0, told.output
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    assert list(found["models"]) == ["dense/model", "narrow/model"]
    dense, small = found["models"].values()
    for what in ("parameters", "multiply_accumulates"):
        assert small[what]["total"] < dense[what]["total"]
    assert small["bytes"] < dense["bytes"]
    assert "loss, lower is better" in told.output
    assert (tmp_path / "out/comparison.png").read_bytes().startswith(b"\x89PNG")


def test_rows_have_a_dash_where_a_model_has_no_such_figure(folders: list[Path]) -> None:
    task: Any = Noise(items=4, length=8)
    sides = side_by_side(folders, task, Measure(batch_size=1, repeats=1))
    changed = {name: {**found, "metrics": {**found["metrics"]}} for name, found in sides.models.items()}
    changed["dense/model"]["metrics"]["more"] = 1.0
    rows = sides.model_copy(update={"models": changed}).rows
    assert ("more", "1.00", "–") in rows
    assert {len(row) for row in rows} == {3}


def test_a_model_that_is_named_twice_is_refused(folders: list[Path]) -> None:
    with pytest.raises(PrunusError, match="named twice"):
        side_by_side([folders[0], folders[0]], Noise(items=4), Measure())


@pytest.mark.parametrize("other", ["dense/model/", "./dense/model", "narrow/../dense/model", "link"])
def test_a_model_that_is_named_twice_in_other_words_is_refused(
    other: str, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders[0].parent.parent)
    Path("link").symlink_to("dense/model")
    with pytest.raises(PrunusError, match="named twice, the first time as dense/model"):
        side_by_side(["dense/model", other], Noise(items=4), Measure())


def test_every_model_has_a_name_of_which_no_letter_is_lost(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = folders[0].parent / "[final] ü"
    folders[0].rename(odd)
    monkeypatch.chdir(folders[1])
    task: Any = Noise(items=4, length=8)
    sides = side_by_side([odd, "."], task, Measure(batch_size=1, repeats=1))
    assert list(sides.models) == ["[final] ü", "model"]
    console = Console(record=True, width=80)
    console.print(sides.table())
    assert "[final] ü" in console.export_text()
    narrow = Console(record=True, width=24)
    narrow.print(sides.table())
    assert "…" not in narrow.export_text()


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    (tmp_path / "folder").mkdir()
    task = ["--task", "easy_vqa"]
    for command, place, option in (
        (["compare", "nothing", *task], "taken", "--out"),
        (["compare", "nothing", *task], "taken/inside", "--out"),
        (["sweep", "nothing", *task], "taken/inside", "--out"),
        (["plan", "nothing"], "folder", "--out"),
        (["plan", "nothing"], "taken/plan.json", "--out"),
        (["evaluate", "nothing", *task], "folder", "--json"),
        (["evaluate", "nothing", *task], "taken/figures.json", "--json"),
    ):
        refused = CliRunner().invoke(app, [*command, option, str(tmp_path / place)]).exception
        assert isinstance(refused, PrunusError)
        assert refused.field == option


@pytest.mark.parametrize("command", ["compare", "sweep", "evaluate"])
def test_a_folder_that_is_no_model_is_called_so(command: str, tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, [command, str(tmp_path), "--task", "noise"]).exception
    assert isinstance(refused, PrunusError)
    assert (refused.field, refused.value) == ("model", str(tmp_path))
    assert "no config.json" in refused.remedy
