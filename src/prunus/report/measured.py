"""The data of a report: the dense model against the compressed one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from prunus.anatomy import Anatomy, Unit, anatomy
from prunus.checkpoint import load_model, plan_of
from prunus.cost import latencies, multiply_accumulates, size
from prunus.evaluation import evaluate_elsewhere
from prunus.plan import MatrixPlan, Plan, SparsityPlan
from prunus.recipe import Measure, Recipe
from prunus.report.report import Report
from prunus.tasks import Task
from prunus.unstructured import sparsity_of


def compare(recipe: Recipe, dense: Path, compressed: Path, courses: list[dict[str, Any]]) -> Report:
    """Measures two saved models: metrics and memory of each in a new process, costs and latency here, in turn.

    Args:
        recipe: names the task and how to measure.
        courses: per step, its name and its history.
    """
    folders, task = {"dense": dense, "compressed": compressed}, recipe.task
    models = {name: load_model(folder).eval() for name, folder in folders.items()}
    parts = {name: anatomy(model) for name, model in models.items()}
    columns = measured(folders, models, parts, dict.fromkeys(folders, task), recipe.measure, recipe.evaluate_limit)
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
        remarks=task.remarks(),
        courses=courses,
        folders={name: str(folder) for name, folder in folders.items()},
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
    )


def measured(
    folders: Mapping[str, Path], models: Mapping[str, PreTrainedModel], parts: Mapping[str, Anatomy], tasks: Mapping[str, Task], measure: Measure, limit: int | None
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """What is shown of saved models, by name: `metrics` and `peak_memory`, each found in a process of its own; `parameters`,
    `multiply_accumulates`, `bytes`, and `latency`, which is taken here and in turn.

    Args:
        models: the same, loaded.
        parts: what they are made of.
        tasks: of each.
        limit: items of the evaluation split; None takes all.
    """
    evaluations = {
        name: evaluate_elsewhere(folder, tasks[name], measure.batch_size, limit) for name, folder in folders.items()
    }
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
    return columns


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
