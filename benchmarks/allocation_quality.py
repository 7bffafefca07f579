"""What an allocation is worth: uniform, OWL and ECoFLaP under Wanda and under SparseGPT, over several draws of calibration
data, without retraining.

`python -m benchmarks.allocation_quality smollm2 DATA`: perplexity of SmolLM2-135M; DATA is a folder with
wikitext2-valid.txt and wikitext2-test.txt. `python -m benchmarks.allocation_quality blip`: accuracy of the demo's BLIP on
easy-VQA, a toy set; `make demo` first. `--out FILE` keeps every cell, and a second call goes on from it. `--scores`: which score over which budget, one draw.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.subjects import Subject, subject
from prunus import OWL, ECoFLaP, SparseGPT, SparsityPlan, Uniform, WalkOptions, Wanda, matrices, prune
from prunus.allocation.allocator import Question, Scoring
from prunus.anatomy import Matrix, choose
from prunus.plan import MatrixPlan
from prunus.storage import write_text

PRUNERS = {"wanda": Wanda, "sparsegpt": SparseGPT}
SPARSITIES = (0.5, 0.6, 0.7)
ALLOCATIONS: dict[str, Callable[[float], Any]] = {
    "uniform": lambda p: Uniform(sparsity=p),
    "owl": lambda p: OWL(sparsity=p),
    "ecoflap": lambda p: ECoFLaP(sparsity=p),
    "ecoflap, one budget": lambda p: ECoFLaP(sparsity=p, per_tower=False),
    "owl, one budget": lambda p: OWL(sparsity=p, per_tower=False),
    "ecoflap, weight_gradient": lambda p: ECoFLaP(sparsity=p, score="weight_gradient"),
}


class Measured:
    """An allocation whose scores are measured once a draw and shared out for every sparsity."""

    def __init__(self, subject: Subject):
        self.subject, self.known = subject, {}  # type: ignore[var-annotated]

    def plan(self, name: str, sparsity: float, draw: int) -> SparsityPlan:
        model, method = self.subject.dense, ALLOCATIONS[name](sparsity)
        chosen = choose(matrices(model))
        batches = self.subject.learning(draw)
        question = Question(model, chosen, batches, lambda m, b: self.subject.predict(m, b).loss, self.subject.bf16)
        key = (method.method, getattr(method, "score", ""), draw)
        if isinstance(method, Scoring):
            if key not in self.known:
                self.known = {key: method.measure(question)}
            kept = method.kept(chosen, self.known[key])
        elif isinstance(method, OWL):
            if key not in self.known:
                self.known = {key: method.outliers(question)}
            kept = method.kept(chosen, self.known[key])
        else:
            kept = method.answer(question).kept
        return plan_of(model, chosen, kept)


def plan_of(model: nn.Module, chosen: Sequence[Matrix], kept: dict[str, int]) -> SparsityPlan:
    matrix_plans = {m.name: MatrixPlan.of(m, m.weights - kept[m.name]) for m in chosen}
    return SparsityPlan(model=type(model).__name__, matrices=matrix_plans)


def scores(studied: Subject, sparsity: float = 0.6) -> None:
    """One draw under Wanda: which score, over which budget, and where the budget goes."""
    chosen = choose(matrices(studied.dense))
    question = Question(
        studied.dense, chosen, studied.learning(0), lambda m, b: studied.predict(m, b).loss, studied.bf16
    )
    flat = plan_of(studied.dense, chosen, Uniform(sparsity=sparsity).answer(question).kept)
    print(f"Wanda at {sparsity}, one draw; uniform: {cell(studied, 'wanda', flat, 0):.1f}\n")
    pools: dict[str, dict[str, Any]] = {
        "one budget, blocks": {"per_tower": False}, "per tower, blocks": {},
        "per tower, matrices": {"granularity": "layer"},
    }  # fmt: skip
    print("| score | " + " | ".join(pools) + " | towers of the first |\n| --- |" + " --- |" * (len(pools) + 1))
    for score in ("gradient_norm", "weight_gradient", "squared"):
        measured, row, towers = ECoFLaP(score=score).measure(question), [], {}
        for settings in pools.values():
            kept = ECoFLaP(sparsity=sparsity, score=score, **settings).kept(chosen, measured)
            plan = plan_of(studied.dense, chosen, kept)
            towers = towers or plan.towers
            row.append(f"{cell(studied, 'wanda', plan, 0):.1f}")
        shown = ", ".join(f"{tower} {share:.2f}" for tower, share in towers.items())
        print(f"| {score} | " + " | ".join(row) + f" | {shown} |", flush=True)


def cell(subject: Subject, pruner: str, plan: SparsityPlan, draw: int) -> float:
    model: nn.Module = copy.deepcopy(subject.dense)
    options = WalkOptions(progress=False, bf16=subject.bf16)
    prune(model, PRUNERS[pruner](), subject.calibration(draw), plan, options=options)
    return subject.evaluate(model)


def show(
    cells: dict[str, float], pruners: Sequence[str], allocations: Sequence[str], draws: int, headline: str
) -> None:
    print(f"{headline}: mean ± standard deviation over {draws} draws of calibration data\n")
    print("| pruner | sparsity | " + " | ".join(allocations) + " |\n| --- | --- |" + " --- |" * len(allocations))
    for pruner in pruners:
        for sparsity in SPARSITIES:
            row = []
            for name in allocations:
                values = [cells[f"{pruner}/{sparsity}/{name}/{draw}"] for draw in range(draws)]
                row.append(f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}")
            print(f"| {pruner} | {sparsity} | " + " | ".join(row) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=["smollm2", "blip"])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--pruners", nargs="+", default=list(PRUNERS), choices=list(PRUNERS))
    parser.add_argument("--allocations", nargs="+", default=list(ALLOCATIONS), choices=list(ALLOCATIONS))
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--scores", action="store_true", help="compare scores and budgets instead")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    studied = subject(asked.subject, asked.data)
    if asked.scores:
        scores(studied)
        return
    cells: dict[str, float] = json.loads(asked.out.read_text()) if asked.out and asked.out.exists() else {}
    measured = Measured(studied)
    print(f"dense: {studied.evaluate(studied.dense):.2f}\n", flush=True)
    for pruner in asked.pruners:
        for draw in range(asked.draws):
            for name in asked.allocations:
                for sparsity in SPARSITIES:
                    key = f"{pruner}/{sparsity}/{name}/{draw}"
                    if key not in cells:
                        cells[key] = cell(studied, pruner, measured.plan(name, sparsity, draw), draw)
                        if asked.out:
                            write_text(asked.out, json.dumps(cells))
    show(cells, asked.pruners, asked.allocations, asked.draws, studied.headline)


if __name__ == "__main__":
    main()
