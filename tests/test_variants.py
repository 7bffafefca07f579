"""Families of recipes in one file."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunus import PrunusError
from prunus.recipe import load_recipe, recipe_variants

TEXT = """
model: {path: somewhere}
task: {name: noise, items: 8}
steps:
  - step: prune
    method: {method: wanda, sparsity: 0.5}
output: runs/some
variants:
  - wanda: {}
    sparsegpt: {steps.0.method.method: sparsegpt}
  - "0.5": {}
    "2:4": {steps.0.method.sparsity: null, steps.0.method.pattern: "2:4"}
  - before: {}
    after: {steps.1: {step: repair, method: {method: ressa}, train: {steps: 3, learning_rate: 1.0e-4}}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(TEXT)
    return tmp_path / "recipe.yaml"


def test_every_combination_has_a_name_and_a_run_folder(path: Path) -> None:
    names = recipe_variants(path)
    assert names == [
        f"{a}/{b}/{c}" for a in ("wanda", "sparsegpt") for b in ("0.5", "2:4") for c in ("before", "after")
    ]
    recipes = [load_recipe(path, (), name) for name in names]
    assert len({recipe.output for recipe in recipes}) == len(names)
    last = recipes[-1]
    assert str(last.output) == "runs/some-sparsegpt-2of4-after"
    assert [step.step for step in last.steps] == ["prune", "repair"]
    assert last.steps[0].method.model_dump()["method"] == "sparsegpt"  # type: ignore[attr-defined]
    assert last.steps[0].method.pattern == "2:4"  # type: ignore[attr-defined]
    assert recipes[0].steps[0].method.sparsity == 0.5  # type: ignore[attr-defined]


def test_what_is_set_by_hand_comes_last(path: Path) -> None:
    recipe = load_recipe(path, ("steps.0.method.sparsity=0.7", "output=elsewhere"), "wanda/0.5/before")
    assert recipe.steps[0].method.sparsity == 0.7  # type: ignore[attr-defined]
    assert str(recipe.output) == "elsewhere"


def test_a_single_mapping_is_a_single_choice(tmp_path: Path) -> None:
    text = TEXT[: TEXT.index("variants")] + "variants:\n  few: {task.items: 4}\n  many: {task.items: 40}\n"
    (tmp_path / "one.yaml").write_text(text)
    assert recipe_variants(tmp_path / "one.yaml") == ["few", "many"]
    assert load_recipe(tmp_path / "one.yaml", (), "many").task.items == 40  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "said"),
    [(None, "name one of wanda/0.5/before"), ("wanda/05/before", "did you mean wanda/0.5/before"), ("", "name one of")],
)
def test_a_variant_has_to_be_named(path: Path, name: str | None, said: str) -> None:
    with pytest.raises(PrunusError, match=said) as caught:
        load_recipe(path, (), name)
    assert caught.value.field == "variant"


def test_a_single_recipe_has_none(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(TEXT[: TEXT.index("variants")])
    assert recipe_variants(tmp_path / "one.yaml") == []
    with pytest.raises(PrunusError, match="single recipe"):
        load_recipe(tmp_path / "one.yaml", (), "wanda")


@pytest.mark.parametrize(
    ("variants", "said"),
    [
        ("7", "give a mapping"), ("[7]", "give a mapping"), ("[{}]", "give a mapping"), ("{a/b: {}}", "without /"),
        ("{a: 3}", "mapping of places"), ("{a: {steps.7.method: 3}}", "no such place"), ("{a: {steps.x: 3}}", "no such place"),
        ("{a: {output.deep.er: 3}}", "no such place"), ("{a: {nonsense: 3}}", "no such field"),
    ],
)  # fmt: skip
def test_variants_that_make_no_sense_are_named(tmp_path: Path, variants: str, said: str) -> None:
    (tmp_path / "one.yaml").write_text(TEXT[: TEXT.index("variants")] + f"variants: {variants}\n")
    with pytest.raises(PrunusError, match=said):
        load_recipe(tmp_path / "one.yaml", (), "a")


def test_too_many_are_refused_at_once(tmp_path: Path) -> None:
    choice = "{" + ", ".join(f"a{n}: {{}}" for n in range(100)) + "}"
    (tmp_path / "one.yaml").write_text(TEXT[: TEXT.index("variants")] + f"variants: [{', '.join([choice] * 6)}]\n")
    with pytest.raises(PrunusError, match="more than ten thousand"):
        recipe_variants(tmp_path / "one.yaml")
