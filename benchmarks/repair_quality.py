"""What repair gives back: dense → allocate → prune → repair → evaluate, for every pruner setting and repair, over several seeds,
at an equal number of training steps; and a report.

`python -m benchmarks.repair_quality smollm2 DATA --report FOLDER`: perplexity of SmolLM2-135M at .5, .6 and 2:4.
`python -m benchmarks.repair_quality blip --report FOLDER`: accuracy of the demo's BLIP at .5, .7 and 2:4 on easy-VQA, a toy set.
`--out FILE` keeps every cell, and a second call goes on from it.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.subjects import Subject, subject
from prunus import (
    RESSA,
    DSnoT,
    ECoFLaP,
    LoRA,
    MaskedLoRA,
    Training,
    WalkOptions,
    Wanda,
    allocate,
    prune,
    repair,
)  # fmt: skip
from prunus.allocation.allocator import Allocator
from prunus.figures import png
from prunus.report import document, embedded, html_table, paragraph
from prunus.storage import write_bytes, write_text
from prunus.unstructured import Pruner

BUDGETS: dict[str, dict[str, dict[str, Any]]] = {
    "smollm2": {".5": {"sparsity": 0.5}, ".6": {"sparsity": 0.6}, "2:4": {"pattern": "2:4"}},
    "blip": {".5": {"sparsity": 0.5}, ".7": {"sparsity": 0.7}, "2:4": {"pattern": "2:4"}},
}
REPAIRS: dict[str, Any] = {"plain LoRA": LoRA, "masked LoRA": MaskedLoRA, "RESSA": RESSA}
COMPOSED = {"smollm2": 0.6, "blip": 0.7}
"""Sparsity at which ECoFLaP × DSnoT × RESSA stands against uniform × Wanda × RESSA, which is a row of the other table."""


def compositions(name: str) -> dict[str, tuple[Allocator, Pruner]]:
    """What stands against uniform × Wanda: allocation and pruner, both to be followed by RESSA."""
    sparsity = COMPOSED[name]
    found: dict[str, tuple[Allocator, Pruner]] = {
        "ECoFLaP × DSnoT": (ECoFLaP(sparsity=sparsity), DSnoT()),
    }
    if name == "blip":  # it has several towers
        found["ECoFLaP, one budget × DSnoT"] = (ECoFLaP(sparsity=sparsity, per_tower=False), DSnoT())
    return found


@dataclass
class Study:
    name: str
    subject: Subject
    training: Training
    cells: dict[str, float]
    out: Path | None

    def keep(self, key: str, value: float) -> None:
        self.cells[key] = value
        print(f"{key}: {value:.2f}", flush=True)
        if self.out:
            write_text(self.out, json.dumps(self.cells))

    def mended(self, pruned: Any, method: Any, seed: int) -> float:
        model, work = copy.deepcopy(pruned), self.subject
        repair(
            model,
            method,
            work.data,
            self.training,
            work.dense,
            work.predict,
            work.collate,
            seed=seed,
            title=method.method,
        )
        return work.evaluate(model.eval())

    def one_budget(self, budget: str, seed: int) -> None:
        """A pruned model, and what each repair makes of it."""
        wanted = [name for name in ("pruned", *REPAIRS) if f"{budget}/{name}/{seed}" not in self.cells]
        if not wanted:
            return
        pruned = copy.deepcopy(self.subject.dense)
        options = WalkOptions(progress=False, bf16=self.subject.bf16)
        prune(pruned, Wanda(**BUDGETS[self.name][budget]), self.subject.calibration(seed), options=options)
        for name in wanted:
            value = self.subject.evaluate(pruned) if name == "pruned" else self.mended(pruned, REPAIRS[name](), seed)
            self.keep(f"{budget}/{name}/{seed}", value)

    def composed(self, seed: int) -> None:
        """Allocation, pruner and repair, all from one paper or one from each."""
        work, options = self.subject, WalkOptions(progress=False, bf16=self.subject.bf16)
        for name, (allocation, method) in compositions(self.name).items():
            if f"{name} × RESSA/{seed}" in self.cells:
                continue
            plan = allocate(
                work.dense, allocation, work.learning(seed), lambda m, b: work.predict(m, b).loss, bf16=work.bf16, progress=False,
            )  # fmt: skip
            pruned = copy.deepcopy(work.dense)
            prune(pruned, method, work.calibration(seed), plan, options=options)
            self.keep(f"{name}/{seed}", work.evaluate(pruned))
            self.keep(f"{name} × RESSA/{seed}", self.mended(pruned, RESSA(), seed))

    def column(self, prefix: str, seeds: int) -> tuple[float, float]:
        values = [self.cells[f"{prefix}/{seed}"] for seed in range(seeds)]
        return statistics.mean(values), statistics.stdev(values) if seeds > 1 else 0.0

    def recovered(self, before: float, after: float) -> float:
        """Share of what pruning lost that came back."""
        return (after - before) / (self.cells["dense"] - before)


def rows(study: Study, seeds: int) -> list[list[str]]:
    """The table, header first."""
    table = [["", "pruned", *REPAIRS, "RESSA recovers"]]
    for budget in BUDGETS[study.name]:
        means = {name: study.column(f"{budget}/{name}", seeds) for name in ("pruned", *REPAIRS)}
        shown = [f"{mean:.2f} ± {spread:.2f}" for mean, spread in means.values()]
        back = study.recovered(means["pruned"][0], means["RESSA"][0])
        table.append([f"uniform × Wanda {budget}", *shown, f"{back:.0%}"])
    for name in compositions(study.name):
        before, after = study.column(name, seeds), study.column(f"{name} × RESSA", seeds)
        shown = [f"{before[0]:.2f} ± {before[1]:.2f}", "", "", f"{after[0]:.2f} ± {after[1]:.2f}"]
        table.append(
            [
                f"{name} {COMPOSED[study.name]:.1f}".replace("0.", "."),
                *shown,
                f"{study.recovered(before[0], after[0]):.0%}",
            ]
        )
    return table


def markdown(table: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([lines[0], "| --- |" + " --- |" * (len(table[0]) - 1), *lines[1:]])


def picture(study: Study, seeds: int) -> bytes:
    """Bars with their spread, one group a budget, and the dense model as a line."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    names = ("pruned", *REPAIRS)
    for place, name in enumerate(names):
        found = [study.column(f"{budget}/{name}", seeds) for budget in BUDGETS[study.name]]
        at = [group + (place - 1.5) * 0.2 for group in range(len(found))]
        axes.bar(at, [mean for mean, _ in found], 0.19, yerr=[spread for _, spread in found], label=name)
    axes.axhline(study.cells["dense"], color="0.3", linewidth=1, linestyle="--", label="dense")
    axes.set_xticks(range(len(BUDGETS[study.name])), list(BUDGETS[study.name]))
    axes.set_ylabel(study.subject.headline)
    if not study.subject.higher_is_better:
        axes.set_yscale("log")
    axes.legend(fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.14))
    return png(figure)


def write_page(study: Study, table: list[list[str]], folder: Path, seeds: int, minutes: float) -> None:
    drawn = picture(study, seeds)
    write_bytes(folder / "repair.png", drawn)
    about = (
        f"{study.subject.headline} of {type(study.subject.dense).__name__}, dense {study.cells['dense']:.2f}; mean ± standard "
        f"deviation over {seeds} seeds of calibration and training; every repair trains for {study.training.steps} steps of "
        f"{study.training.batch_size} items and keeps every zero. {minutes:.0f} minutes."
    )
    write_text(
        folder / "report.html",
        document(
            f"What repair gives back: {study.name}",
            paragraph(about) + html_table(table[0], table[1:], "What is left") + embedded("bars of the table", drawn),
        ),
    )
    write_text(folder / "table.md", markdown(table) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=["smollm2", "blip"])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--report", type=Path)
    asked = parser.parse_args()
    start = time.perf_counter()
    studied = subject(asked.subject, asked.data)
    training = Training(
        steps=asked.steps, batch_size=2 if asked.subject == "smollm2" else 16, learning_rate=5e-4, schedule="cosine",
        warmup_steps=5, weight_decay=0.0, save_every=10**6, bf16=True,
    )  # fmt: skip
    cells = json.loads(asked.out.read_text()) if asked.out and asked.out.exists() else {}
    if cells.setdefault("steps", asked.steps) != asked.steps:
        raise SystemExit(f"{asked.out} holds runs of {cells['steps']:.0f} steps; take another file")
    study = Study(asked.subject, studied, training, cells, asked.out)
    if "dense" not in cells:
        study.keep("dense", studied.evaluate(studied.dense))
    for seed in range(asked.seeds):
        for budget in BUDGETS[asked.subject]:
            study.one_budget(budget, seed)
        study.composed(seed)
    table = rows(study, asked.seeds)
    print("\n" + markdown(table))
    if asked.report:
        write_page(study, table, asked.report, asked.seeds, (time.perf_counter() - start) / 60)
        print(f"\nreport: {asked.report / 'report.html'}")


if __name__ == "__main__":
    main()
