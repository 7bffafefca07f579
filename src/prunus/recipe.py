"""Recipes as typed data: a model, a task, steps, an output folder."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from prunus.allocation import AnyAllocator
from prunus.bounded_yaml import TEXT_LIMIT, read_yaml
from prunus.checkpoint.plausible import check_config
from prunus.errors import PrunusError
from prunus.repair import AnyRepair, Distillation, Training
from prunus.storage import writable_path
from prunus.structured import AnySearch
from prunus.tasks import AnyTask
from prunus.typed import Count, Seed, Steps, Typed, first_problem
from prunus.unstructured import AnyPruner, WalkOptions


class Source(Typed):
    """Where the dense model comes from: a path (hub id or folder), a pip package, or the task's own warm start."""

    path: str | None = None
    packaged: Literal["smollm2"] | None = None
    """A model that a pip package carries, unpacked into the cache."""
    random: dict[str, Any] | None = None
    """A config, with `model_type` and `architectures`, whose model gets random weights: to try a recipe at any size."""
    warm_start: dict[str, int] | None = None
    """Sizes of the task's warm-start model."""
    train: tuple[Training, ...] = ()
    """Phases of training before compression; the trained model is cached for the next run."""

    @model_validator(mode="after")
    def _one_source(self) -> Source:
        if sum(given is not None for given in (self.path, self.packaged, self.random, self.warm_start)) != 1:
            raise PrunusError("path", self.path, "give one of path, packaged, random and warm_start")
        if self.random is not None:
            check_config(self.random, "random")
        return self


class SearchStep(Typed):
    """Trains while searching for what to prune, then extracts."""

    step: Literal["search"] = "search"
    method: AnySearch
    train: Training


class RetrainStep(Typed):
    """Trains the extracted model."""

    step: Literal["retrain"] = "retrain"
    train: Training
    distillation: Distillation | None = None
    """What to learn from the dense model beside the task."""


class Calibration(Typed):
    """What a pruner is shown: training inputs of the task."""

    samples: Count = 128
    batch_size: Count = 8


class PruneStep(Typed):
    """Sets weights to zero, block by block, without training."""

    step: Literal["prune"] = "prune"
    method: AnyPruner
    allocate: AnyAllocator | None = None
    """How the sparsity is shared out over the model; None is the method's own sparsity, everywhere alike."""
    allocation_data: Calibration = Calibration(samples=32, batch_size=8)
    """What the allocation is shown: training items, with the task's loss."""
    calibration: Calibration = Calibration()
    include: tuple[str, ...] = ()
    """Globs over module paths and towers; empty is everything but the connector."""
    exclude: tuple[str, ...] = ()
    walk: WalkOptions = WalkOptions()
    keep_zeros: bool | None = None
    """Whether weights that are zero already stay so; None is yes for a model that was pruned before."""

    @model_validator(mode="after")
    def _one_sparsity(self) -> PruneStep:
        if self.allocate is not None and (self.method.sparsity is not None or self.method.nofm is not None):
            raise PrunusError(
                "method.sparsity", self.method.sparsity or self.method.pattern,
                "the allocation says how sparse everything becomes; leave it out here",
            )  # fmt: skip
        return self


class RepairStep(Typed):
    """Trains a pruned model without losing a zero."""

    step: Literal["repair"] = "repair"
    method: AnyRepair
    train: Training


Step = Annotated[SearchStep | RetrainStep | PruneStep | RepairStep, Field(discriminator="step")]


class Measure(Typed):
    """How latency and memory are measured."""

    batch_size: int = Field(default=16, ge=1, le=4096)
    repeats: int = Field(default=5, ge=1, le=1000)


class Recipe(Typed):
    """Everything a run depends on."""

    model: Source
    task: AnyTask
    steps: tuple[Step, ...] = Field(min_length=1)
    measure: Measure = Measure()
    evaluate_limit: Steps | None = None
    """Items of the evaluation split that final figures use; None uses all."""
    output: Path
    seed: Seed = 0

    @field_validator("output")
    @classmethod
    def _is_a_place(cls, output: Path) -> Path:
        return writable_path(output)

    @model_validator(mode="after")
    def _steps_follow(self) -> Recipe:
        if self.steps[0].step in ("retrain", "repair"):
            raise PrunusError(
                "steps.0.step", self.steps[0].step, "search or prune first; there is nothing to repair yet"
            )
        for number, step in enumerate(self.steps):
            pruned = any(earlier.step == "prune" for earlier in self.steps[:number])
            if step.step in ("search", "retrain") and pruned:
                raise PrunusError(
                    f"steps.{number}.step", step.step, "it trains every weight and would fill the zeros of the prune step; "
                    "take step repair, or put the prune step last",
                )  # fmt: skip
            if step.step == "repair" and not pruned:
                raise PrunusError(
                    f"steps.{number}.step", "repair", "it holds zeros, and nothing is pruned yet; take step retrain"
                )
        return self


def load_recipe(path: str | Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Reads a recipe from YAML.

    Args:
        path: the file.
        overrides: "dotted.field=value" assignments, values in YAML, such as "steps.0.method.ratio=0.7".

    Raises:
        PrunusError: the file is absent or no YAML, or a field is unknown, missing or wrong.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(TEXT_LIMIT + 1)
    except OSError as error:
        raise PrunusError("recipe", str(path), f"it cannot be read ({error.strerror}); give a YAML file") from None
    except ValueError:
        raise PrunusError("recipe", str(path), "it is no text in UTF-8; give a YAML file") from None
    return parse_recipe(text, str(path), overrides)


def demo_recipe(overrides: tuple[str, ...] = ()) -> Recipe:
    """The recipe of `prunus demo`."""
    text = resources.files("prunus").joinpath("recipes/demo.yaml").read_text()
    return parse_recipe(text, "demo.yaml", overrides)


def parse_recipe(text: str, source: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """As `load_recipe`, from text; `source` names it in errors."""
    data = read_yaml(text, "recipe", source)
    if not isinstance(data, dict):
        raise PrunusError("recipe", source, "it must be a mapping with model, task, steps and output")
    for assignment in overrides:
        _override(data, assignment)
    try:
        return Recipe.model_validate(data)
    except PrunusError as error:
        raise PrunusError(f"{source}: {error.field}", error.value, error.remedy) from None
    except ValidationError as error:
        raise first_problem(error, Recipe, source) from None


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with every default filled in, as YAML."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def _override(data: Any, assignment: str) -> None:
    field, equals, value = assignment.partition("=")
    if not equals:
        raise PrunusError("--set", assignment, "write it as field=value, such as steps.0.method.ratio=0.7")
    *parents, last = field.split(".")
    try:
        for key in parents:
            data = data[int(key)] if isinstance(data, list) else data.setdefault(key, {})
        data[int(last) if isinstance(data, list) else last] = read_yaml(value, "--set", assignment)
    except PrunusError:
        raise
    except (IndexError, ValueError, TypeError, AttributeError):
        raise PrunusError("--set", assignment, "the recipe has no such place") from None
