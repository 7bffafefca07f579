"""Recipes as typed data: a model, a task, steps, an output folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, field_validator, model_validator

from prunus.bounded_yaml import read_yaml, yaml_text
from prunus.errors import PrunusError
from prunus.sources import AnySource, with_tag
from prunus.steps import AnyStep
from prunus.storage import writable_path
from prunus.tasks import AnyTask
from prunus.training import Training
from prunus.typed import Seed, Steps, Typed, read_typed
from prunus.variants import of_variant, put, variant_names


class Measure(Typed):
    """How latency and memory are measured."""

    batch_size: int = Field(default=16, ge=1, le=4096)
    """Items of the batch that is timed and weighed."""
    repeats: int = Field(default=5, ge=1, le=1000)
    """Timed calls, dense and compressed in turn."""


class Recipe(Typed):
    """Everything a run depends on."""

    model: AnySource
    """Where the dense model comes from."""
    task: AnyTask
    """What the model is for."""
    steps: tuple[AnyStep, ...] = Field(min_length=1)
    """What is done to it, in this order."""
    measure: Measure = Measure()
    """How the result is measured."""
    evaluate_limit: Steps | None = None
    """Items of the evaluation split that final figures use; None uses all."""
    output: Path
    """Folder of the run."""
    seed: Seed = 0
    """Of all random numbers."""

    _model_in_full = field_validator("model", mode="before")(with_tag)

    @field_validator("output")
    @classmethod
    def _is_a_place(cls, output: Path) -> Path:
        return writable_path(output)

    @model_validator(mode="after")
    def _steps_follow(self) -> Recipe:
        for number, step in enumerate(self.steps):
            try:
                packed = next((one.step for one in self.steps[:number] if one.packs), None)
                if packed is not None:
                    raise PrunusError(
                        "step", step.step, f"nothing can follow the step {packed}, which packs the weights; put it last"
                    )
                step.follow(self.steps[:number])
                step.suit(self.task)
            except PrunusError as error:
                raise PrunusError(f"steps.{number}.{error.field}", error.value, error.remedy) from None
        return self

    def identity(self) -> Any:
        """The settings that the result depends on; two recipes of one identity make the same model and report."""
        return _identity(self)


def _identity(value: Any) -> Any:
    if isinstance(value, Training):
        return value.identity()
    if isinstance(value, Typed):
        return type(value), {name: _identity(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, list | tuple):
        return [_identity(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _identity(entry) for key, entry in value.items()}
    return value


def load_recipe(path: str | Path, overrides: tuple[str, ...] = (), variant: str | None = None) -> Recipe:
    """Reads a recipe from YAML.

    Args:
        path: the file; where there is none, the one of this name that is part of the package, such as `recipes/demo.yaml`.
        variant: which of several, where the file has `variants`.
        overrides: "dotted.field=value" assignments, values in YAML, such as "steps.0.method.ratio=0.7".

    Raises:
        PrunusError: the file is absent or no YAML, or a field is unknown, missing or wrong.
    """
    return parse_recipe(_text_of(path), str(path), overrides, variant)


def recipe_variants(path: str | Path) -> list[str]:
    """Names of the recipes in a file; none where it is a single one.

    Raises:
        PrunusError: as `load_recipe`.
    """
    return variant_names(_data_of(_text_of(path), str(path)), str(path))


def _text_of(path: str | Path) -> str:
    return yaml_text(_place(Path(path)), "recipe", str(path))


def _place(path: Path) -> Path:
    """The file, or the packaged one of this name."""
    parts = path.parts[1:] if path.parts[:1] == ("recipes",) else path.parts
    packaged = Path(__file__).parent.joinpath("recipes", *parts)
    is_packaged = not path.is_absolute() and ".." not in parts and packaged.is_file() and not path.exists()
    return packaged if is_packaged else path


def demo_recipe(overrides: tuple[str, ...] = ()) -> Recipe:
    """The recipe of `prunus demo`."""
    return parse_recipe(_text_of(Path(__file__).parent / "recipes" / "demo.yaml"), "demo.yaml", overrides)


def parse_recipe(text: str, source: str, overrides: tuple[str, ...] = (), variant: str | None = None) -> Recipe:
    """As `load_recipe`, from text; `source` names it in errors."""
    data = of_variant(_data_of(text, source), variant, source)
    for assignment in overrides:
        _override(data, assignment)
    return recipe_of(data, source)


def recipe_of(data: dict[str, Any], source: str) -> Recipe:
    """As `parse_recipe`, from plain data.

    Raises:
        PrunusError: a field is unknown, missing or wrong.
    """
    return read_typed(Recipe, data, source)


def _data_of(text: str, source: str) -> dict[str, Any]:
    data = read_yaml(text, "recipe", source)
    if not isinstance(data, dict):
        raise PrunusError("recipe", source, "it must be a mapping with model, task, steps and output")
    return data


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with every default filled in, as YAML."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def _override(data: Any, assignment: str) -> None:
    field, equals, value = assignment.partition("=")
    if not equals:
        raise PrunusError("--set", assignment, "write it as field=value, such as steps.0.method.ratio=0.7")
    try:
        put(data, field, read_yaml(value, "--set", assignment))
    except LookupError:
        raise PrunusError("--set", assignment, "the recipe has no such place") from None
