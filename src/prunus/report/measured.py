"""The data of a report: the dense model against the compressed one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from prunus.anatomy import Anatomy, Unit, anatomy
from prunus.checkpoint import load_model, plan_of
from prunus.cost import latencies, multiply_accumulates, size
from prunus.evaluation import evaluate_elsewhere
from prunus.plan import MatrixPlan, Plan, SparsityPlan
from prunus.recipe import Recipe
from prunus.report.report import Report
from prunus.unstructured import sparsity_of


def compare(recipe: Recipe, dense: Path, compressed: Path, courses: list[dict[str, Any]]) -> Report:
    """Measures two saved models: metrics and memory of each in a new process, costs and latency here, in turn.

    Args:
        recipe: names the task and how to measure.
        courses: per step, its name and its history.
    """
    folders, measure = {"dense": dense, "compressed": compressed}, recipe.measure
    evaluations = {
        name: evaluate_elsewhere(folder, recipe.task, measure.batch_size, recipe.evaluate_limit)
        for name, folder in folders.items()
    }
    models = {name: load_model(folder).eval() for name, folder in folders.items()}
    examples = {name: recipe.task.example(model, measure.batch_size) for name, model in models.items()}
    times = latencies(examples, measure.repeats)
    parts = {name: anatomy(model) for name, model in models.items()}
    plan = plan_of(models["compressed"]) or Plan(model=type(models["dense"]).__name__, ratio=0.0, units={})
    sparsity = sparsity_of(models["compressed"])
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
    return Report(
        headline=recipe.task.headline,
        metrics=dict(recipe.task.metrics),
        recipe=recipe.model_dump(mode="json"),
        models=columns,
        retained=retained(parts["dense"], plan, sparsity),
        ratio=plan.ratio,
        sparsity=sparsity.sparsity if sparsity else 0.0,
        courses=courses,
        folders={name: str(folder) for name, folder in folders.items()},
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
    )


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
