"""Recipes: strict, overridable, and refused before any training."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from torch import nn

from prunus import Magnitude, PrunusError, prune
from prunus.anatomy import Anatomy, discover
from prunus.checkpoint import random_model
from prunus.cli import main
from prunus.recipe import Recipe, demo_recipe, dump_recipe, load_recipe, parse_recipe
from prunus.run import check, run
from prunus.sources import (
    PackagedSource,
    PathSource,
    PublishedSource,
    RandomSource,
    Source,
    WarmStartSource,
    dense_folder,
)


def test_the_resolved_recipe_is_the_same_recipe() -> None:
    recipe = demo_recipe()
    assert parse_recipe(dump_recipe(recipe), "resolved") == recipe


def test_fields_can_be_set_from_outside() -> None:
    recipe = demo_recipe(("steps.0.method.ratio=0.7", "output=elsewhere"))
    assert recipe.steps[0].method.ratio == 0.7  # type: ignore[union-attr]
    assert str(recipe.output) == "elsewhere"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("steps.0.method.ratio=1.5", r"steps\.0\.method\.ratio = 1\.5"),
        ("steps.0.method.ratioo=0.5", "did you mean ratio"),
        ("steps.0.train.step=5", "did you mean steps"),
        ("steps.0.step=prune", "steps"),
        ("task.name=imagenet", r"task\.name = 'imagenet'"),
        ("tasks=1", "did you mean task"),
        ("model.path=somewhere", "one of packaged, path, published, random, towers, warm_start"),
        ("steps=[]", "steps"),
        ("nonsense", "field=value"),
        ("steps.9.train=1", "no such place"),
    ],
)
def test_a_wrong_recipe_is_one_clear_error(change: str, message: str) -> None:
    with pytest.raises(PrunusError, match=message):
        demo_recipe((change,))


VIT = {
    "model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 32, "num_attention_heads": 2,
    "intermediate_size": 64, "num_hidden_layers": 2, "image_size": 28, "patch_size": 14,
}  # fmt: skip
TRAIN = {"steps": 2, "batch_size": 2, "learning_rate": 1e-3, "save_every": 2, "weight_decay": 0.0}
SMALL = {
    "model": {"random": VIT},
    "task": {"name": "noise", "items": 8, "length": 8},
    "steps": [{"step": "search", "method": {"ratio": 0.25, "interval": 1}, "train": TRAIN}],
    "measure": {"batch_size": 1, "repeats": 1},
    "evaluate_limit": 4,
    "output": "small",
}
PRUNE = {"step": "prune", "method": {"method": "magnitude"}, "calibration": {"samples": 4, "batch_size": 2}}
REPAIR = {"step": "repair", "method": {"method": "ressa", "rank": 2}, "train": TRAIN}


def small(**changes: Any) -> Recipe:
    return parse_recipe(yaml.safe_dump({**SMALL, **changes}), "small.yaml")


NOT_GIVEN = {"path": None, "packaged": None, "random": None, "warm_start": None, "train": []}
"""How 0.1 wrote down every source."""


@pytest.mark.parametrize(
    ("short", "kind"),
    [
        ({"path": "org/model"}, PathSource),
        ({"packaged": "smollm2"}, PackagedSource),
        ({"published": "model.pth"}, PublishedSource),
        ({"random": VIT}, RandomSource),
        ({"warm_start": {}}, WarmStartSource),
    ],
)
def test_a_source_is_written_in_short_in_full_or_as_0_1_did(short: dict[str, Any], kind: type[Source]) -> None:
    source = small(model=short).model
    assert type(source) is kind
    (name,) = short
    for written in ({"source": name, **short}, {**NOT_GIVEN, **short}):
        assert small(model=written).model == source


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({}, "give one of packaged, path"),
        ({"path": None}, "give one of packaged, path"),
        ({"source": "nothing"}, r"model\.source = 'nothing'"),
        ({"source": "path"}, r"model\.path"),
        ({"path": "a", "random": VIT}, "give one of packaged, path"),
        ({"random": {**VIT, "hidden_size": 0}}, r"model\.random: hidden_size = 0"),
        ({"path": "a", "trains": []}, "did you mean train"),
        ("org/model", "model"),
    ],
)
def test_a_wrong_source_is_one_clear_error(model: object, message: str) -> None:
    with pytest.raises(PrunusError, match=message):
        small(model=model)


def test_dense_models_that_0_1_cached_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path))
    recipe = small()
    settings = [{**NOT_GIVEN, "random": recipe.model.random}, recipe.task.model_dump(mode="json"), 0]
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    (tmp_path / f"dense-noise-{key}" / "model").mkdir(parents=True)
    assert dense_folder(recipe.model, recipe.task, 0, Console(quiet=True)) == tmp_path / f"dense-noise-{key}" / "model"


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models whose anatomy has been read, by their class."""
    read: list[str] = []
    original = discover._anatomy

    def counting(model: nn.Module, *args: Any) -> Anatomy:
        read.append(type(model).__name__)
        return original(model, *args)

    monkeypatch.setattr(discover, "_anatomy", counting)
    return read


def test_checking_a_recipe_reads_the_anatomy_once(readings: list[str]) -> None:
    allocated = {**PRUNE, "method": {"method": "wanda"}, "allocate": {"method": "uniform", "sparsity": 0.5}}
    check(small(steps=[*SMALL["steps"], PRUNE, allocated, REPAIR]))  # type: ignore[misc]
    assert len(readings) == 1


@pytest.mark.parametrize("change", [{}, {"steps": [PRUNE], "model": {"train": [TRAIN]}}])
def test_a_model_that_has_zeros_is_not_trained(change: dict[str, Any], tmp_path: Path) -> None:
    model = random_model(VIT)
    prune(model, Magnitude(), [{"pixel_values": torch.randn(1, 3, 28, 28)}])
    model.save_pretrained(tmp_path)
    source = {"path": str(tmp_path), **change.get("model", {})}
    with pytest.raises(PrunusError, match=r"model\.path = .*which training would fill"):
        check(small(**{**change, "model": source}))
    check(small(steps=[PRUNE, REPAIR], model={"path": str(tmp_path)}))


@pytest.mark.usefixtures("quick_reports")
def test_a_run_is_gone_on_with_from_a_folder_of_0_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readings: list[str]
) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    recipe = small(steps=[*SMALL["steps"], PRUNE, REPAIR], output=str(tmp_path / "run"))  # type: ignore[misc]
    report = run(recipe, Console(quiet=True))
    assert len(readings) <= 17
    record, made = tmp_path / "run" / "recipe.yaml", tmp_path / "run" / "3-repair" / "model" / "model.safetensors"
    data = yaml.safe_load(record.read_text())
    record.write_text(yaml.safe_dump({**data, "model": {**NOT_GIVEN, "random": VIT}}, sort_keys=False))
    before = made.read_bytes(), made.stat().st_mtime_ns
    assert run(recipe, Console(quiet=True)).ratio == report.ratio
    assert (made.read_bytes(), made.stat().st_mtime_ns) == before
    for step in ("1-search", "2-prune", "3-repair"):  # as if it had been killed before the history was written
        (tmp_path / "run" / step / "course.json").unlink()
    again = run(recipe, Console(quiet=True))
    assert [course.get("ratio") for course in again.courses] == [course.get("ratio") for course in report.courses]
    assert made.read_bytes() == before[0]


def test_files_that_are_no_recipes_are_named(tmp_path) -> None:
    with pytest.raises(PrunusError, match=r"absent\.yaml.*cannot be read"):
        load_recipe(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(PrunusError, match=r"broken\.yaml.*not YAML"):
        load_recipe(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(PrunusError, match="mapping"):
        load_recipe(tmp_path / "list.yaml")


def test_a_model_that_is_not_there_fails_before_training(tmp_path) -> None:
    data = yaml.safe_load(dump_recipe(demo_recipe()))
    data["model"] = {"path": str(tmp_path)}
    data["output"] = str(tmp_path / "run")
    with pytest.raises(PrunusError, match="model"):
        run(parse_recipe(yaml.safe_dump(data), "recipe"))


@pytest.mark.long
def test_the_command_line_says_it_in_one_line_and_status_two(tmp_path) -> None:
    command = [sys.executable, "-m", "prunus", "compress", str(tmp_path / "absent.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "absent.yaml" in done.stderr.replace("\n", "")


@pytest.mark.long
@pytest.mark.parametrize("method", ["owl", "iterative_global", "uniform"])
def test_every_allocation_runs_in_a_recipe(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 2}
    clip = {
        "model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": 16,
        "vision_config": {**sizes, "image_size": 32, "patch_size": 16},
        "text_config": {**sizes, "vocab_size": 60, "max_position_embeddings": 77, "eos_token_id": 2},
    }  # fmt: skip
    step = {
        "step": "prune", "method": {"method": "wanda"}, "allocate": {"method": method, "sparsity": 0.4},
        "allocation_data": {"samples": 8, "batch_size": 8}, "calibration": {"samples": 8, "batch_size": 8},
    }  # fmt: skip
    data = {
        "model": {"random": clip}, "task": {"name": "noise", "items": 8, "length": 6}, "steps": [step],
        "measure": {"batch_size": 1, "repeats": 1}, "output": str(tmp_path / "run"),
    }  # fmt: skip
    assert run(parse_recipe(yaml.safe_dump(data), "recipe")).sparsity == pytest.approx(0.4, abs=1e-3)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"step": "repair", "method": {"method": "ressa"}, "train": {"steps": 1, "learning_rate": 1}}], "search or prune first"),
        ([{"step": "search", "method": {"ratio": 0.5}, "train": {"steps": 1, "learning_rate": 1}},
          {"step": "repair", "method": {"method": "ressa"}, "train": {"steps": 1, "learning_rate": 1}}], "nothing is pruned"),
        ([{"step": "prune", "method": {"method": "wanda", "sparsity": 0.5}, "allocate": {"method": "ecoflap"}}], "leave it out here"),
        ([{"step": "prune", "method": {"method": "wanda", "pattern": "2:4"}, "allocate": {"method": "ecoflap"}}], "leave it out here"),
        ([{"step": "prune", "method": {"method": "wanda"}}, {"step": "retrain", "train": {"steps": 1, "learning_rate": 1}}], "take step repair"),
    ],
)  # fmt: skip
def test_steps_that_cannot_follow_are_refused(steps: list[dict[str, object]], message: str) -> None:
    data = yaml.safe_load(dump_recipe(demo_recipe()))
    data["steps"] = steps
    with pytest.raises(PrunusError, match=message):
        parse_recipe(yaml.safe_dump(data), "recipe.yaml")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml")), ids=lambda path: path.stem
)
def test_recipes_of_the_repository_are_valid(path: Path) -> None:
    load_recipe(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("steps.0.method.include=[langauge]", "matches no unit"),
        ("steps.0.method.ratio=0.9999", "at most"),
        ("model.warm_start.vision_layers=13", "1 to 12"),
    ],
)
def test_what_the_model_makes_impossible_is_said_before_training(change: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(PrunusError, match=message):
        run(demo_recipe((change, f"output={folder}")))
    assert not folder.exists(), "a refused recipe takes no folder"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("steps.0.include=[langauge]", "matches no matrix"),
        ("steps.1.method.rank={visoin: 4}", "no such tower"),
    ],
)
def test_so_is_what_random_models_make_impossible(change: str, message: str, tmp_path: Path) -> None:
    data = {**SMALL, "steps": [PRUNE, REPAIR], "output": str(tmp_path / "run")}
    with pytest.raises(PrunusError, match=message):
        run(parse_recipe(yaml.safe_dump(data), "recipe", (change,)))


def test_remedies_are_printed_to_the_letter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusing() -> None:
        raise PrunusError("a[b]", "[bold]", "pip install 'prunus[eval]'")

    monkeypatch.setattr("prunus.cli.app", refusing)
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert said == "error a[b] = '[bold]': pip install 'prunus[eval]'\n", "one line, to the letter"


def test_packaged_recipes_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("recipes/demo.yaml").task.name == load_recipe("demo.yaml").task.name == "easy_vqa"
    (tmp_path / "demo.yaml").write_text("task: 3")
    with pytest.raises(PrunusError, match="required"):
        load_recipe("demo.yaml")
    with pytest.raises(PrunusError, match="cannot be read"):
        load_recipe("../recipes/demo.yaml")
