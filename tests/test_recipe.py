"""Recipes: strict, overridable, and refused before any training."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from prunus import PrunusError
from prunus.recipe import demo_recipe, dump_recipe, load_recipe, parse_recipe
from prunus.run import run


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
        ("steps.0.method.ratio=1.5", r"steps\.0\.search\.method\.ratio = 1\.5"),
        ("steps.0.method.ratioo=0.5", "did you mean ratio"),
        ("steps.0.train.step=5", "did you mean steps"),
        ("steps.0.step=prune", "steps"),
        ("task.name=imagenet", r"task\.name = 'imagenet'"),
        ("tasks=1", "did you mean task"),
        ("model.path=somewhere", "one of path, packaged and warm_start"),
        ("steps=[]", "steps"),
        ("nonsense", "field=value"),
        ("steps.9.train=1", "no such place"),
    ],
)
def test_a_wrong_recipe_is_one_clear_error(change: str, message: str) -> None:
    with pytest.raises(PrunusError, match=message):
        demo_recipe((change,))


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
