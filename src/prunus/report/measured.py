"""The data of a report: the dense model against the compressed one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from prunus.anatomy import Anatomy, Unit, anatomy, survey
from prunus.checkpoint import how_to_load, load_model, plan_of
from prunus.cost import latencies, multiply_accumulates, size
from prunus.evaluation import evaluate_elsewhere, evaluate_once
from prunus.plan import MatrixPlan, Plan, SparsityPlan
from prunus.recipe import Measure, Recipe
from prunus.report.report import Report
from prunus.report.samples import Sample, collected
from prunus.tasks import Task
from prunus.unstructured import sparsity_of

SHOWN = 6
"""Items of the evaluation split that a report shows."""


def compare(
    recipe: Recipe, dense: Path, compressed: Path, courses: list[dict[str, Any]], kept: Path | None = None
) -> Report:
    """Measures two saved models: metrics and memory of each in a new process, costs and latency here, in turn.

    Args:
        recipe: names the task and how to measure.
        courses: per step, its name and its history.
        kept: folder of evaluations of dense models, which are not repeated.
    """
    folders, task = {"dense": dense, "compressed": compressed}, recipe.task
    models = {name: load_model(folder).eval() for name, folder in folders.items()}
    parts = {name: anatomy(model) for name, model in models.items()}
    tasks = dict.fromkeys(folders, task)
    columns, samples = measured(folders, models, parts, tasks, recipe.measure, recipe.evaluate_limit, {"dense": kept})
    plan = plan_of(models["compressed"]) or Plan(model=type(models["dense"]).__name__, ratio=0.0, units={})
    sparsity = sparsity_of(models["compressed"])
    return Report(
        headline=recipe.task.headline,
        metrics=dict(recipe.task.metrics),
        recipe=recipe.model_dump(mode="json"),
        models=columns,
        retained=retained(parts["dense"], plan, sparsity),
        ratio=plan.ratio,
        sparsity=sparsity.sparsity if sparsity else 0.0,
        passed_over=passed_over(parts["dense"], plan, models["compressed"], sparsity),
        samples=samples,
        loading=how_to_load(models["compressed"], str(compressed)),
        remarks=task.remarks(),
        courses=courses,
        folders={name: str(folder) for name, folder in folders.items()},
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
    )


def measured(
    folders: Mapping[str, Path], models: Mapping[str, PreTrainedModel], parts: Mapping[str, Anatomy], tasks: Mapping[str, Task], measure: Measure, limit: int | None,
    kept: Mapping[str, Path | None] = MappingProxyType({}),
) -> tuple[dict[str, dict[str, Any]], list[Sample]]:  # fmt: skip
    """What is shown of saved models, by name: `metrics` and `peak_memory`, each found in a process of its own; `parameters`,
    `multiply_accumulates`, `bytes`, and `latency`, which is taken here and in turn. And items, with what each makes of them.

    Args:
        models: the same, loaded.
        parts: what they are made of.
        tasks: of each.
        limit: items of the evaluation split; None takes all.
        kept: where evaluations lie that are not repeated, of some of them.
    """
    evaluations = {}
    for name, folder in folders.items():
        asked, place = (folder, tasks[name], measure.batch_size, limit, SHOWN), kept.get(name)
        evaluations[name] = evaluate_elsewhere(*asked) if place is None else evaluate_once(place, *asked)
    examples = {name: tasks[name].example(model, measure.batch_size) for name, model in models.items()}
    times = latencies(examples, measure.repeats)
    columns = {}
    for name, model in models.items():
        counted = size(model, parts[name])
        columns[name] = {
            "metrics": evaluations[name].metrics,
            "parameters": {**counted.towers, "total": counted.parameters},
            "multiply_accumulates": multiply_accumulates(model, examples[name], parts[name]),
            "bytes": counted.bytes,
            "latency": asdict(times[name]),
            "peak_memory": evaluations[name].peak_memory,
        }
    return columns, collected({name: evaluation.exhibits for name, evaluation in evaluations.items()})


def retained(dense: Anatomy, plan: Plan, sparsity: SparsityPlan | None) -> dict[str, list[float]]:
    """Component → share of its weights kept, block by block: channels that stay, times weights that are not zero."""
    zeros: dict[str, list[MatrixPlan]] = {}
    for name, matrix in sparsity.matrices.items() if sparsity else ():
        zeros.setdefault(name.partition("[")[0], []).append(matrix)

    def density(unit: Unit) -> float:
        inside = [matrix for path in unit.linear_paths for matrix in zeros.get(path, ())]
        return 1 - sum(p.pruned for p in inside) / max(sum(p.weights for p in inside), 1)

    return {
        component: [len(plan.kept(unit)) / unit.channels * density(unit) for unit in units]
        for component, units in dense.components.items()
    }


def passed_over(
    dense: Anatomy, plan: Plan, model: PreTrainedModel, sparsity: SparsityPlan | None
) -> dict[str, dict[str, float]]:
    """What channels or weights were not taken from: which kind of pruning → why → share, of those kinds that there were.

    Args:
        model: the compressed one, which the zeros are in.
    """
    found: dict[str, dict[str, float]] = {}
    if plan.units:
        unasked = sum(unit.channels * unit.channel_cost for unit in dense if unit.name not in plan.units)
        counts = {"units that were not searched": unasked, **dense.dense}
        found["Parameters that no channel could leave from, of the dense model's"] = _shares(counts, dense.parameters)
    if sparsity is not None:
        inside, counts = survey(model), dict[str, int]()
        left = [(part.name, part.weights, part.reason) for part in inside.left_dense]
        left += [(matrix.name, matrix.weights, "matrices that were not pruned") for matrix in inside.matrices]
        for name, weights, reason in left:
            if name not in sparsity.matrices:
                counts[reason] = counts.get(reason, 0) + weights
        found["Weights that could not become zero, of those in blocks"] = _shares(counts, inside.weights)
    return found


def _shares(counts: Mapping[str, int], whole: int) -> dict[str, float]:
    return {reason: count / max(whole, 1) for reason, count in counts.items() if count}
