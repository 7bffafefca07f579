"""A stranger's day: whatever a recipe names can be defined in one file outside of the package, of public names alone.

Every file in `tests/strangers` is used from a recipe, one by one and in this process, and from the command line, all together.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml

from prunus import PrunusError, anatomy, load_model, matrices, plan_of, sparsity_of
from prunus.checkpoint import random_model
from prunus.cli import app
from prunus.extensions import load_extension
from prunus.recipe import Recipe, dump_recipe, parse_recipe
from prunus.report import Report
from prunus.run import run
from prunus.sources import Source
from prunus.steps import Bench, Sketch, Step
from prunus.tasks import Noise, Task

STRANGERS = Path(__file__).parent / "strangers"
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 50,
}  # fmt: skip
ORCHARD = {"model_type": "orchard", "architectures": ["OrchardForImageClassification"], "num_labels": 3}
TRAIN = {"steps": 2, "batch_size": 2, "learning_rate": 1e-3, "save_every": 2}
PRUNE = {
    "step": "prune",
    "method": {"method": "magnitude", "sparsity": 0.5},
    "calibration": {"samples": 4, "batch_size": 2},
}
RECIPE: dict[str, Any] = {
    "model": {"random": LLAMA},
    "task": {"name": "noise", "items": 8, "length": 8},
    "steps": [PRUNE],
    "measure": {"batch_size": 1, "repeats": 1},
    "evaluate_limit": 4,
}


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in load_model(folder).named_parameters()}


def is_the_mean(place: Path, report: Report) -> None:
    first, second, mean = (weights(folder) for folder in (place / "a", place / "b", report.folders["dense"]))
    for name, weight in mean.items():
        torch.testing.assert_close(weight, (first[name] + second[name]) / 2)
        assert not torch.equal(first[name], second[name]) or weight.ndim == 1


def is_rounded(place: Path, report: Report) -> None:
    model = load_model(report.folders["compressed"])
    for matrix in matrices(model):
        assert max(len(row.unique()) for row in matrix.view(model)) <= 7


def is_pruned(place: Path, report: Report) -> None:
    model = load_model(report.folders["compressed"])
    assert type(model).__name__ == "OrchardForImageClassification"
    assert {unit.component for unit in anatomy(model)} == {"vision.attention", "vision.mlp"}
    assert all(0.4 < float((matrix.view(model) == 0).float().mean()) < 0.6 for matrix in matrices(model))


def is_narrow(place: Path, report: Report) -> None:
    plan = plan_of(load_model(report.folders["compressed"]))
    assert plan is not None
    parts = anatomy(load_model(report.folders["dense"]))
    stays = sum(len(plan.kept(unit)) * unit.channel_cost for unit in parts) / parts.prunable
    assert abs(stays - 0.6) <= max(unit.channel_cost for unit in parts) / parts.prunable


def is_in_bits(place: Path, report: Report) -> None:
    found = report.models["dense"]["metrics"]["bits"]
    assert found > 1
    assert report.headline == "bits"
    assert report.rows[0][:2] == ("bits, lower is better", f"{found:.2f}")


def is_half_gone(place: Path, report: Report) -> None:
    record = sparsity_of(load_model(report.folders["compressed"]))
    assert record is not None
    assert record.sparsity == 0.5
    assert record.history[-1].method == "contribution"


def is_sparser_with_depth(place: Path, report: Report) -> None:
    record = sparsity_of(load_model(report.folders["compressed"]))
    assert record is not None
    shares = list({matrix.block: matrix.sparsity for matrix in record.matrices.values()}.values())
    assert shares[0] < 0.5 < shares[1]
    assert [entry.method for entry in record.history] == ["depth", "magnitude"]


def has_other_norms(place: Path, report: Report) -> None:
    dense, repaired = (weights(report.folders[name]) for name in ("dense", "compressed"))
    for name, weight in repaired.items():
        assert torch.equal(weight, dense[name]) == (weight.ndim > 1 and "layers" not in name)
        assert weight.ndim == 1 or torch.equal(weight, dense[name] * (weight != 0)), "matrices do not train"


Check = Callable[[Path, Report], None]
"""Given the folder with the models `a` and `b`, and what the run found."""
CASES: dict[str, tuple[dict[str, Any], Check]] = {
    "own_architecture": ({"model": {"random": ORCHARD}}, is_pruned),
    "own_source": ({"model": {"source": "soup", "folders": ["PLACE/a", "PLACE/b"]}}, is_the_mean),
    "own_task": ({"task": {"name": "counting", "words": 12}}, is_in_bits),
    "own_search": (
        {"steps": [{"step": "search", "method": {"method": "by_magnitude", "ratio": 0.4}, "train": TRAIN}]},
        is_narrow,
    ),
    "own_importance": (
        {"steps": [{"step": "search", "method": {"method": "two_rounds", "ratio": 0.4}, "train": TRAIN}]},
        is_narrow,
    ),
    "own_step": ({"steps": [{"step": "round", "bits": 3}]}, is_rounded),
    "own_pruner": ({"steps": [{**PRUNE, "method": {"method": "contribution", "sparsity": 0.5}}]}, is_half_gone),
    "own_allocator": (
        {"steps": [{**PRUNE, "method": {"method": "magnitude"}, "allocate": {"method": "depth", "max_sparsity": 0.9}}]},
        is_sparser_with_depth,
    ),
    "own_repair": (
        {"steps": [PRUNE, {"step": "repair", "method": {"method": "vectors"}, "train": TRAIN}]},
        has_other_norms,
    ),
}
"""File → what it changes in the recipe, and what must be so after the run. Where all are used together, their steps follow one
another in this order."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strangers")
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        random_model(LLAMA).save_pretrained(folder / name)
    return folder


def written(place: Path, output: Path, *changes: dict[str, Any]) -> str:
    """The recipe with changes, in YAML."""
    data: dict[str, Any] = {**RECIPE, "output": str(output)}
    steps = [step for change in changes for step in change.get("steps", ())]
    for change in changes:
        data.update(change)
    return yaml.safe_dump({**data, "steps": steps or RECIPE["steps"]}).replace("PLACE", str(place))


@pytest.mark.usefixtures("quick_reports")
@pytest.mark.parametrize("name", CASES)
def test_a_recipe_names_it(name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    change, check = CASES[name]
    load_extension(str(STRANGERS / f"{name}.py"))
    recipe = parse_recipe(written(place, tmp_path / "run", change), "recipe")
    assert parse_recipe(dump_recipe(recipe), "again") == recipe
    check(place, run(recipe))


@pytest.mark.parametrize("name", CASES)
def test_it_is_one_short_file_of_public_names(name: str) -> None:
    lines = (STRANGERS / f"{name}.py").read_text().splitlines()
    assert len(lines) <= 60
    assert not [line for line in lines if line.startswith(("from prunus", "import prunus")) and " _" in line]
    rooms = {line.split()[1] for line in lines if line.startswith("from prunus")}
    assert all(room.count(".") <= 1 for room in rooms), "what a room's face offers"


@pytest.mark.long
def test_the_command_line_imports_them_all(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "recipe.yaml").write_text(written(place, tmp_path / "run", *(change for change, _ in CASES.values())))
    imports = [word for name in CASES for word in ("--import", str(STRANGERS / f"{name}.py"))]
    command = [sys.executable, "-m", "prunus", "compress", str(tmp_path / "recipe.yaml"), *imports]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert Report.load(tmp_path / "run").models["compressed"]["metrics"]
    (tmp_path / "config.json").write_text(json.dumps(ORCHARD))
    inspect = [sys.executable, "-m", "prunus", "inspect", str(tmp_path / "config.json"), *imports]
    assert "vision.attention" in subprocess.run(inspect, check=True, stdout=subprocess.PIPE, text=True).stdout


def test_what_cannot_be_imported_is_said(tmp_path: Path) -> None:
    with pytest.raises(PrunusError, match=r"import = .*absent\.py.*no such file"):
        app(["compress", str(tmp_path / "recipe.yaml"), "--import", str(tmp_path / "absent.py")], standalone_mode=False)


class Forgets(Step):
    step: Literal["forgets"] = "forgets"
    returned: Any = None
    saves: bool = True
    sketch: bool = True

    def check(self, before: Sketch) -> Any:
        return before if self.sketch else None

    def carry_out(self, bench: Bench) -> Any:
        if self.saves:
            bench.save(bench.load())
        return {"log": [torch.zeros(1)]} if self.returned == "tensor" else self.returned


class Nowhere(Source):
    source: Literal["nowhere"] = "nowhere"

    def skeleton(self, task: Task) -> Any:
        return random_model(LLAMA)


class Unnamed(Noise):
    def evaluate(self, model: Any, limit: int | None = None, progress: bool = True) -> dict[str, float]:
        return {"loss": 42.0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": [{"step": "forgets"}]}, r"step = 'forgets': carry_out returned None"),
        ({"steps": [{"step": "forgets", "returned": {"ratio": []}}]}, r"step = 'forgets': carry_out returned .*log"),
        ({"steps": [{"step": "forgets", "returned": "tensor"}]}, r"step = 'forgets': .*JSON cannot hold"),
        ({"steps": [{"step": "forgets", "returned": {"log": []}, "saves": False}]}, r"has made no bench\.output"),
        ({"steps": [PRUNE, {"step": "forgets", "sketch": False}]}, r"steps\.1: step = 'forgets': check returned None"),
        ({"model": {"source": "nowhere"}}, r"model\.source = 'nowhere': its class has neither folder nor build"),
        ({"task": Unnamed(items=8, length=8)}, r"Unnamed.*would take Noise"),
    ],
)
def test_what_a_class_of_ones_own_forgets_is_said(
    change: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    recipe = Recipe(**{**RECIPE, "output": tmp_path / "run", **change})
    for _ in range(2):
        with pytest.raises(PrunusError, match=said):
            run(recipe)
