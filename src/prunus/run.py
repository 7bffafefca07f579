"""Carries out a recipe: dense model → its steps → evaluation → report.

A run folder holds one folder per step. A step's result takes its name only when it is whole, so a run that dies
anywhere goes on from its last checkpoint when it is started again with the same recipe.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from transformers import PreTrainedModel

from prunus.errors import PrunusError
from prunus.parallel import after_first, agreeing, alone, in_first, is_first, join_group, of_first
from prunus.recipe import Recipe, dump_recipe, load_recipe
from prunus.report import Report, compare, write_report
from prunus.sources import dense_folder, described
from prunus.steps import Bench, History, Sketch, Step
from prunus.storage import cache_folder, claim_folder, disk_errors, locked, write_text
from prunus.tasks import Split, Task
from prunus.typed import places_in, refuse_nameless

RECORD = "recipe.yaml"
"""Says which run a folder belongs to."""


def run(recipe: Recipe, console: Console | None = None, kept: Path | None = None) -> Report | None:
    """Carries out a recipe, or goes on with it. Under `torchrun` all processes take part in its steps, and the first writes, evaluates and
    reports.

    Args:
        kept: folder of evaluations of dense models, for runs that start from the same one: there they are looked for, and put.

    Returns:
        The report, which also lies in the run folder as `report.json` and `report.html`; None in all processes but the first.

    Raises:
        PrunusError: before any training starts, if the recipe cannot work; or if the folder holds another run.
    """
    join_group()
    console = console or Console() if is_first() else Console(quiet=True)
    with ExitStack() as held:
        with agreeing():
            check_all(recipe)
            with disk_errors(recipe.output, "the run goes on once it can"):
                held.enter_context(in_first(_taken(recipe)))
                done = _carry_out(recipe, console)
        if not is_first():
            return None
        with disk_errors(recipe.output, "the run goes on once it can"), alone():  # the others are done
            console.rule("evaluation")
            report = compare(*done, kept)
            write_report(report, recipe.output)
            return report


def check_all(recipe: Recipe) -> None:
    """All that can be said before anything is trained: of the task's data, the model, the steps, and whether they fit each other. The
    model is fetched, if need be.

    Raises:
        PrunusError: the recipe cannot work.
    """
    recipe.task.check()
    for split in get_args(Split):
        recipe.task.check_split(split)
    places_in(recipe)  # what a new process cannot import is refused now, not when the result is evaluated
    refuse_nameless(recipe, Recipe.model_validate(recipe.model_dump(mode="json")))
    model, given = check(recipe), after_first(lambda: recipe.model.folder(cache_folder()))
    if given is not None:
        _suited(recipe, given)
    elif recipe.model.train:
        with tempfile.TemporaryDirectory() as place:
            _suited(recipe, described(model, Path(place)))


@contextmanager
def _taken(recipe: Recipe) -> Iterator[None]:
    """While the context is open, the folder of the recipe is that of this run."""
    claim_folder(recipe.output, RECORD)
    with locked(recipe.output):
        _claim(recipe)
        yield


def finished(recipe: Recipe) -> Report | None:
    """The report of a run that this recipe has been carried out in; None where it has not, or not to its end."""
    if not _is_of(recipe):
        return None
    try:
        return Report.load(recipe.output)
    except PrunusError:
        return None


def check(recipe: Recipe) -> PreTrainedModel:
    """Whatever the model makes impossible is said before anything is trained.

    Returns:
        The model on the meta device.

    Raises:
        PrunusError: naming the step.
    """
    with torch.device("meta"):
        model = recipe.model.skeleton(recipe.task)
    sketch = Sketch.of(model)
    if sketch.has_zeros and (recipe.model.train or any(step.fills_zeros for step in recipe.steps)):
        name = recipe.model.source
        raise PrunusError(
            f"model.{name}", getattr(recipe.model, name, None), "its weights have zeros (it was pruned by prunus), which training would "
            "fill; take the dense model, or step repair",
        )  # fmt: skip
    for number, step in enumerate(recipe.steps):
        try:
            sketch = step.check(sketch)
            if not isinstance(sketch, Sketch):
                raise PrunusError("step", step.step, f"check returned {sketch!r}; it is to return a Sketch")
        except PrunusError as error:
            raise PrunusError(f"steps.{number}: {error.field}", error.value, error.remedy) from None
    return model


def _suited(recipe: Recipe, folder: Path) -> Task:
    """The task as the model in a folder needs it; what does not fit model, data or steps is said before anything is trained."""
    task = recipe.task.for_model(folder)
    task.check_model(folder)
    if recipe.model.train:
        task.check_loss()
    for number, step in enumerate(recipe.steps):
        try:
            step.suit_data(task)
        except PrunusError as error:
            raise PrunusError(f"steps.{number}.{error.field}", error.value, error.remedy) from None
    return task


def _carry_out(recipe: Recipe, console: Console) -> tuple[Recipe, Path, Path, list[dict[str, Any]]]:
    """The recipe with its task as the model needs it, the dense model, the last one, and what steps have to tell."""
    for remark in recipe.task.remarks() if is_first() else ():
        console.print(f"note: {remark}", markup=False, highlight=False)
    dense = dense_folder(recipe.model, recipe.task, recipe.seed, console)
    task = _suited(recipe, dense)
    recipe = recipe.model_copy(update={"task": task})
    after_first(task.train_data)
    recipe.model.check(task, dense)
    current, unpruned = dense, dense
    courses: list[dict[str, Any]] = []
    for number, step in enumerate(recipe.steps, start=1):
        bench = Bench(task, recipe.seed, recipe.output / f"{number}-{step.step}", current, unpruned, dense)
        courses.append({"step": step.step, **_history(step, bench, f"{number}. {step.step}", console)})
        current = bench.output
        unpruned = unpruned if any(done.prunes for done in recipe.steps[:number]) else current
    return recipe, dense, current, courses


def _history(step: Step, bench: Bench, title: str, console: Console) -> dict[str, Any]:
    """What a step has to tell, which is carried out unless it has been; the file of it is written last."""
    file = bench.folder / "course.json"
    if not of_first(bench.output.exists() and file.exists()):
        console.rule(title)
        bench.seed_generators()
        history = step.carry_out(bench)
        if not isinstance(history, dict) or "log" not in history:
            raise PrunusError(
                "step", step.step, f'carry_out returned {history!r}; it is to return {{"log": […]}} or more'
            )
        with agreeing():
            if not bench.output.exists():
                raise PrunusError("step", step.step, "carry_out has made no bench.output, such as by bench.save(model)")
            if is_first():
                write_text(file, _as_json(step, history))
    try:
        return dict(json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        raise PrunusError(
            "output", str(file), "the file is damaged; delete its folder, and the step is done again"
        ) from None


def _as_json(step: Step, history: History) -> str:
    try:
        return json.dumps(history)
    except TypeError as error:
        raise PrunusError("step", step.step, f"carry_out returned what JSON cannot hold ({error})") from None


def _claim(recipe: Recipe) -> None:
    """Takes the folder for this recipe; another recipe's run is not overwritten."""
    record = recipe.output / RECORD
    if record.exists() and not _is_of(recipe):
        raise PrunusError(
            "output",
            str(recipe.output),
            "it holds a run of another recipe; choose another output, or delete the folder",
        )
    write_text(record, dump_recipe(recipe))


def _is_of(recipe: Recipe) -> bool:
    """Whether its folder holds a run of this recipe, read with every default of this version."""
    try:
        return bool(load_recipe(recipe.output / RECORD).identity() == recipe.identity())
    except PrunusError:
        return False
