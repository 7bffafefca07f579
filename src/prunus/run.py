"""Carries out a recipe: dense model → search → surgery → retraining → checkpoint → evaluation → report.

A run folder holds one folder per step. A step's result takes its name only when it is whole, so a run that dies
anywhere goes on from its last checkpoint when it is started again with the same recipe.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, Subset
from transformers import PreTrainedModel, set_seed

from prunus.allocation import allocate
from prunus.allocation.allocator import Question
from prunus.anatomy import Unit, anatomy, matrices
from prunus.batches import default_device
from prunus.checkpoint import bare_model, extract, load_model, local_folder, plan_of, prune_folder, random_model
from prunus.checkpoint.checksums import write_checksums
from prunus.checkpoint.plausible import understood
from prunus.cost import latencies, multiply_accumulates, peak_memory, size
from prunus.errors import PrunusError, refusing
from prunus.losses import Loss
from prunus.models import smollm2
from prunus.plan import Plan, SparsityPlan
from prunus.recipe import PruneStep, Recipe, RepairStep, RetrainStep, SearchStep, Source, Step, dump_recipe
from prunus.repair import Lesson, LoRA, Training, finetune, repair
from prunus.repair.lora import adapted
from prunus.report import Report, write_report
from prunus.storage import claim_folder, locked, new_folder, write_text
from prunus.tasks import Task
from prunus.unstructured import sparsity_of
from prunus.unstructured.pruning import settle

COURSE_LIMIT = 500
"""Items of the evaluation split that the accuracy along the way is measured on."""


def run(recipe: Recipe, console: Console | None = None) -> Report:
    """Carries out a recipe, or goes on with it.

    Returns:
        The report, which also lies in the run folder as `report.json` and `report.html`.

    Raises:
        PrunusError: before any training starts, if the recipe cannot work; or if the folder holds another run.
    """
    console = console or Console()
    folder = recipe.output
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise PrunusError(
            "WORLD_SIZE", os.environ["WORLD_SIZE"], "a recipe runs in one process; in several, call prunus.repair, prunus.finetune "
            "or SearchCallback from a script of your own",
        )  # fmt: skip
    recipe.task.check()
    _check_methods(recipe)
    given = _folder_of(recipe.model)
    if given is not None and os.path.isdir(given):
        recipe.task.for_model(Path(given)).check_model(Path(given))
    claim_folder(folder, RECORD)
    try:
        with locked(folder):
            return _carry_out_all(recipe, folder, console)
    except OSError as error:
        where, why = error.filename2 or error.filename or folder, error.strerror or error
        raise PrunusError(
            "output", str(where), f"it cannot be written or read ({why}); the run goes on once it can"
        ) from error


def _carry_out_all(recipe: Recipe, folder: Path, console: Console) -> Report:
    _claim(folder, recipe)
    dense_folder = _dense(recipe, console)
    recipe = recipe.model_copy(update={"task": recipe.task.for_model(dense_folder)})
    recipe.task.check_model(dense_folder)
    recipe.task.train_data()
    if recipe.model.random is not None:
        _try(recipe.task, dense_folder)
    so_far, courses = _Models(dense_folder, dense_folder, dense_folder), []
    for number, step in enumerate(recipe.steps, start=1):
        step_folder = folder / f"{number}-{step.step}"
        if not (step_folder / "model").exists():
            console.rule(f"{number}. {step.step}")
            _carry_out(step, recipe, so_far, step_folder)
        courses.append({"step": step.step, **_course(step_folder / "course.json")})
        so_far = so_far.after(step, step_folder / "model")
    return _conclude(recipe, dense_folder, so_far.current, courses, console)


def _try(task: Task, dense: Path) -> None:
    """Sizes that a model can be built of need not fit one another when it runs."""
    with understood("model.random", doing="run the model"), torch.no_grad():
        task.loss(load_model(dense).eval(), task.collate([task.train_data()[0]]))


def _course(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        raise PrunusError(
            "output", str(file), "the file is damaged; delete its folder, and the step is done again"
        ) from None


@dataclass(frozen=True)
class _Models:
    """Folders of the models that a step may need."""

    dense: Path
    unpruned: Path
    """The last one without zeros."""
    current: Path

    def after(self, step: Step, made: Path) -> _Models:
        keeps_zeros = isinstance(step, PruneStep | RepairStep)
        return _Models(self.dense, self.unpruned if keeps_zeros else made, made)


def _claim(folder: Path, recipe: Recipe) -> None:
    """Takes the folder for this recipe; another recipe's run is not overwritten."""
    resolved = dump_recipe(recipe)
    record = folder / RECORD
    try:
        other = record.exists() and record.read_bytes() != resolved.encode()
    except OSError as error:
        raise PrunusError("output", str(record), f"it cannot be read ({error.strerror}); delete the folder") from None
    if other:
        raise PrunusError(
            "output", str(folder), "it holds a run of another recipe; choose another output, or delete the folder"
        )
    write_text(record, resolved)


RECORD = "recipe.yaml"
"""Says which run a folder belongs to."""


def _check_methods(recipe: Recipe) -> None:
    """Whatever the model makes impossible is said before anything is trained."""
    with torch.device("meta"):
        model = _skeleton(recipe.model, recipe.task)
    parts, pruned = anatomy(model), set()
    has_zeros = sparsity_of(model) is not None
    for number, step in enumerate(recipe.steps):
        if has_zeros and (recipe.model.train or isinstance(step, SearchStep | RetrainStep)):
            raise PrunusError(
                "model.path", recipe.model.path, "its weights have zeros (it was pruned by prunus), which training would fill; "
                "take the dense model, or step repair",
            )  # fmt: skip
        try:
            if isinstance(step, SearchStep):
                step.method.check(parts.select(step.method.include, step.method.exclude))
            elif isinstance(step, PruneStep):
                pruned |= _check_prune(step, model)
            elif isinstance(step, RepairStep) and isinstance(step.method, LoRA):
                adapted(matrices(model), pruned, step.method.rank)
        except PrunusError as error:
            raise PrunusError(f"steps.{number}: {error.field}", error.value, error.remedy) from None


def _skeleton(source: Source, task: Task) -> PreTrainedModel:
    """The model that a recipe starts from, without weights."""
    folder = _folder_of(source)
    if folder is not None:
        return bare_model(str(folder))
    return random_model(source.random) if source.random is not None else _warm(source, task.skeleton)


def _check_prune(step: PruneStep, model: nn.Module) -> set[str]:
    """The matrices that the step prunes."""
    if step.allocate is None:
        return {m.name for m in settle(model, step.method, None, step.include, step.exclude)[0]}
    chosen = step.allocate.choose(matrices(model), step.include, step.exclude)
    if not step.allocate.needs_batches:
        step.allocate.answer(Question(model, chosen))
    return {matrix.name for matrix in chosen}


def _dense(recipe: Recipe, console: Console) -> Path:
    """Folder of the dense model: the given one, or a freshly trained one, from the cache if it is there."""
    source = recipe.model
    given = _folder_of(source)
    if given is not None and not source.train:
        return Path(given)
    key = hashlib.sha256(
        json.dumps([source.model_dump(mode="json"), recipe.task.model_dump(mode="json"), recipe.seed]).encode()
    ).hexdigest()[:16]
    folder = cache_folder() / f"dense-{recipe.task.name}-{key}"
    with locked(folder, "cache", wait=True):
        return _made(recipe, folder, console)


def _made(recipe: Recipe, folder: Path, console: Console) -> Path:
    """The folder of a dense model that has been made there, now or before."""
    source = recipe.model
    if not (folder / "model").exists():
        console.rule("dense model")
        set_seed(recipe.seed)
        model = _source_model(source, recipe.task)
        course: list[dict[str, float]] = []
        for phase, training in enumerate(source.train, start=1):
            title = f"dense {phase}/{len(source.train)}" if len(source.train) > 1 else "dense"
            course += _train(model, training, folder / f"phase-{phase}", recipe, title)
        write_text(folder / "course.json", json.dumps({"log": course}))
        _save(model, recipe.task, folder / "model")
    else:
        console.print(f"dense model: cached in {folder}")
    return folder / "model"


def cache_folder() -> Path:
    """Where trained dense models are kept: $PRUNUS_CACHE, or `prunus` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PRUNUS_CACHE") or Path(base) / "prunus")


def _source_model(source: Source, task: Task) -> PreTrainedModel:
    folder = _folder_of(source)
    if folder is not None:
        return load_model(folder)
    return random_model(source.random) if source.random is not None else _warm(source, task.warm_start)


def _folder_of(source: Source) -> str | Path | None:
    """Where the weights of a source lie, if it has any before the run."""
    return smollm2(cache_folder() / "smollm2-135m") if source.packaged is not None else source.path


def _warm(source: Source, make: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    try:
        return make(**(source.warm_start or {}))
    except TypeError as error:
        raise PrunusError("model.warm_start", source.warm_start, str(error).rpartition(") ")[2]) from None


def _train(
    model: PreTrainedModel,
    training: Training,
    folder: Path,
    recipe: Recipe,
    title: str,
    callbacks: tuple[Any, ...] = (),
    loss: Loss | None = None,
) -> list[dict[str, float]]:
    task = recipe.task
    return finetune(
        model, training, folder, task.train_data(), task.collate, loss or task.loss, evaluate=_headline(task),
        callbacks=callbacks, seed=recipe.seed, title=title,
    )  # fmt: skip


def _headline(task: Task) -> Callable[[PreTrainedModel], dict[str, float]]:
    """The metric along the way, on a part of the evaluation split."""
    return lambda model: {task.headline: task.evaluate(model, COURSE_LIMIT, progress=False)[task.headline]}


def _retrain(
    model: PreTrainedModel, step: RetrainStep, recipe: Recipe, dense: Path, folder: Path
) -> list[dict[str, float]]:
    loss: Loss | None = None
    if step.distillation is not None:
        teacher = load_model(dense)
        blocks = list(dict.fromkeys(unit.block for unit in anatomy(model)))
        loss = Lesson(step.distillation, recipe.task.predict, teacher, blocks)
    return _train(model, step.train, folder, recipe, "retrain", loss=loss)


def _repair(
    model: PreTrainedModel, step: RepairStep, recipe: Recipe, unpruned: Path, folder: Path
) -> list[dict[str, float]]:
    task = recipe.task
    return repair(
        model, step.method, task.train_data(), step.train, partial(load_model, unpruned),
        task.predict, task.collate, folder, _headline(task), seed=recipe.seed, title=step.method.method,
    )  # fmt: skip


def _carry_out(step: Step, recipe: Recipe, models: _Models, folder: Path) -> None:
    """One step: from the current model to the one in `folder`."""
    set_seed(recipe.seed)
    if isinstance(step, PruneStep):
        _prune(step, recipe.task, models.current, folder)
        return
    model = load_model(models.current)
    course: dict[str, Any] = {}
    if isinstance(step, SearchStep):
        from prunus.structured.callback import SearchCallback

        callback = SearchCallback(step.method)
        course["log"] = _train(model, step.train, folder / "checkpoints", recipe, "search", (callback,))
        assert callback.search is not None
        course["ratio"] = callback.search.course
        plan = callback.plan()
        plan.save(folder / "plan.json")
        model = extract(model, plan, inplace=True)
    elif isinstance(step, RepairStep):
        course["log"] = _repair(model, step, recipe, models.unpruned, folder / "checkpoints")
    else:
        course["log"] = _retrain(model, step, recipe, models.dense, folder / "checkpoints")
    write_text(folder / "course.json", json.dumps(course))
    _save(model, recipe.task, folder / "model")


def _prune(step: PruneStep, task: Task, source: Path, folder: Path) -> None:
    plan = _allocated(step, task, source, folder / "plan.json")
    batches = task.calibration(step.calibration.samples, step.calibration.batch_size)
    write_text(folder / "course.json", json.dumps({"log": []}))
    prune_folder(
        local_folder(source), folder / "model", step.method, batches, plan=plan, include=step.include, exclude=step.exclude,
        options=step.walk, device=default_device(), keep_zeros=step.keep_zeros,
    )  # fmt: skip


def _allocated(step: PruneStep, task: Task, source: Path, file: Path) -> SparsityPlan | None:
    """The plan of the step's allocation; a run that goes on takes the one that is already there."""
    if step.allocate is None:
        return None
    if not file.exists():
        data, wanted = task.train_data(), step.allocation_data
        size = len(data)  # type: ignore[arg-type]
        picked = Subset(data, [place * size // wanted.samples for place in range(min(wanted.samples, size))])
        loader: DataLoader[Any] = DataLoader(picked, wanted.batch_size, collate_fn=task.collate)
        plan = allocate(
            load_model(source).to(default_device()),
            step.allocate,
            loader,
            task.loss,
            step.include,
            step.exclude,
            bf16=step.walk.bf16,
        )
        plan.save(file)
    return SparsityPlan.load(file)


def _save(model: PreTrainedModel, task: Task, folder: Path) -> None:
    with new_folder(folder) as partial:
        model.save_pretrained(partial)
        task.save_processor(partial)
        write_checksums(partial)


@dataclass(frozen=True)
class Evaluation:
    """What a fresh process found out about a saved model."""

    metrics: dict[str, float]
    peak_memory: int
    """Peak resident bytes of a process that loads the model and runs one batch."""
    seconds: float


def evaluate_here(path: str | Path, task: Task, batch_size: int, limit: int | None = None) -> Evaluation:
    """Loads a saved model with its stock class and evaluates it, in this process.

    Raises:
        PrunusError: the task has no data, or is not one for this model.
    """
    task.check()
    model, task = load_model(path).eval(), task.for_model(Path(path))
    task.check()
    task.check_model(Path(path))
    with refusing("task", task.name, f"a {type(model).__name__} cannot be evaluated on it, so name another task"):
        task.example(model, batch_size)()
        peak = peak_memory()
        model.to(default_device())
        start = time.perf_counter()
        metrics = task.evaluate(model, limit)
    return Evaluation(metrics, peak, time.perf_counter() - start)


def evaluate_elsewhere(path: Path, recipe: Recipe) -> Evaluation:
    """As `evaluate_here`, in a new process, which proves that the files suffice."""
    command = [
        sys.executable, "-m", "prunus", "evaluate", str(path), "--json", "-",
        "--task", recipe.task.model_dump_json(), "--batch-size", str(recipe.measure.batch_size),
    ]  # fmt: skip
    if recipe.evaluate_limit is not None:
        command += ["--limit", str(recipe.evaluate_limit)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise PrunusError("evaluation", str(path), f"the new process failed with status {done.returncode}; see above")
    return Evaluation(**json.loads(done.stdout.splitlines()[-1]))


def _conclude(recipe: Recipe, dense: Path, compressed: Path, courses: list[dict[str, Any]], console: Console) -> Report:
    console.rule("evaluation")
    evaluations = {"dense": evaluate_elsewhere(dense, recipe), "compressed": evaluate_elsewhere(compressed, recipe)}
    models = {"dense": load_model(dense).eval(), "compressed": load_model(compressed).eval()}
    examples = {name: recipe.task.example(model, recipe.measure.batch_size) for name, model in models.items()}
    times = latencies(examples, recipe.measure.repeats)
    plan = plan_of(models["compressed"]) or Plan(model=type(models["dense"]).__name__, ratio=0.0, units={})
    sparsity = sparsity_of(models["compressed"])
    columns = {}
    for name, model in models.items():
        counted = size(model)
        columns[name] = {
            "metrics": evaluations[name].metrics,
            "parameters": {**counted.towers, "total": counted.parameters},
            "multiply_accumulates": multiply_accumulates(model, examples[name]),
            "bytes": counted.bytes,
            "latency": asdict(times[name]),
            "peak_memory": evaluations[name].peak_memory,
        }
    report = Report(
        headline=recipe.task.headline,
        metrics=dict(recipe.task.metrics),
        recipe=recipe.model_dump(mode="json"),
        models=columns,
        retained=_retained(models["dense"], plan, sparsity),
        ratio=plan.ratio,
        sparsity=sparsity.sparsity if sparsity else 0.0,
        courses=courses,
        folders={"dense": str(dense), "compressed": str(compressed)},
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
    )
    write_report(report, recipe.output)
    return report


def _retained(dense: PreTrainedModel, plan: Plan, sparsity: SparsityPlan | None) -> dict[str, list[float]]:
    """Component → share of its weights kept, block by block: channels that stay, times weights that are not zero."""
    zeros = sparsity.matrices if sparsity else {}

    def density(unit: Unit) -> float:
        inside = [zeros[path] for path in unit.linear_paths if path in zeros]
        return 1 - sum(p.pruned for p in inside) / max(sum(p.weights for p in inside), 1)

    return {
        component: [len(plan.kept(unit)) / unit.channels * density(unit) for unit in units]
        for component, units in anatomy(dense).components.items()
    }
