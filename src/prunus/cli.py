"""The command line: thin, every command is a call of the library."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from pydantic import ValidationError
from rich.console import Console

from prunus.anatomy import anatomy
from prunus.checkpoint import bare_model, plan_of
from prunus.errors import PrunusError
from prunus.recipe import Recipe, demo_recipe, load_recipe
from prunus.report import Report, terminal_table, write_report
from prunus.run import evaluate_here, run
from prunus.storage import write_text
from prunus.tasks import EasyVQA
from prunus.typed import first_problem

app = typer.Typer(
    help="Makes vision-language transformers small: prune, narrow, repair, and get a plain transformers checkpoint.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip

SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Change a field: steps.0.method.ratio=0.7. May be repeated.")
]


@app.command()
def demo(changes: SetOption = None) -> None:
    """The main job on real input: trains a small BLIP on easy-VQA, halves it with UPop, and reports."""
    _compress(demo_recipe(tuple(changes or ())))


@app.command()
def compress(recipe: Path, changes: SetOption = None) -> None:
    """Carries out RECIPE (YAML). Started again after an interruption, it goes on where it was."""
    _compress(load_recipe(recipe, tuple(changes or ())))


def _compress(recipe: Recipe) -> None:
    console = Console()
    report = run(recipe, console)
    console.print(_table(report))
    console.print(f"report: {recipe.output / 'report.html'}   model: {report.folders['compressed']}")


def _table(report: Report) -> object:
    return terminal_table(report.models, f"{report.ratio:.1%} of the prunable cost removed")


@app.command()
def inspect(model: str) -> None:
    """What MODEL (hub id, folder or config file) is made of: towers, blocks, units, costs. Reads no weights."""
    with torch.device("meta"):
        built = bare_model(model)
    plan = plan_of(built)
    typer.echo(str(anatomy(built)))
    if plan is not None:
        kept = sum(len(unit.kept) for unit in plan.units.values())
        total = sum(unit.channels for unit in plan.units.values())
        typer.echo(
            f"\nnarrowed by prunus: {plan.ratio:.2%} of the prunable cost removed, {kept:,} of {total:,} channels kept; "
            "the table shows the dense model"
        )


@app.command()
def evaluate(
    model: Path,
    task: Annotated[str, typer.Option(help="A task's name, or its settings as JSON.")] = "easy_vqa",
    limit: Annotated[int | None, typer.Option(help="Evaluate this many items only.")] = None,
    batch_size: Annotated[int, typer.Option(help="Batch for the memory measurement.")] = 16,
    json_path: Annotated[
        str | None, typer.Option("--json", help="Write the figures here; - is standard output.")
    ] = None,
) -> None:
    """Loads MODEL with its stock transformers class and evaluates it on a task."""
    settings = task if task.lstrip().startswith("{") else json.dumps({"name": task})
    try:
        chosen = EasyVQA.model_validate_json(settings)
    except ValidationError as error:
        raise first_problem(error, EasyVQA, "--task") from None
    evaluation = evaluate_here(model, chosen, batch_size, limit)
    text = json.dumps(asdict(evaluation))
    if json_path == "-":
        typer.echo(text)
    elif json_path:
        write_text(Path(json_path), text + "\n")
    else:
        for name, value in evaluation.metrics.items():
            typer.echo(f"{name:<20}{value:8.2%}")


@app.command()
def report(runs: list[Path]) -> None:
    """Prints the table of finished RUNS and draws their pages again."""
    console = Console()
    for folder in runs:
        finished = Report.load(folder)
        write_report(finished, folder)
        console.print(_table(finished))


def main() -> None:
    """Entry point: a refused request is one line on standard error and status 2."""
    try:
        app()
    except PrunusError as error:
        Console(stderr=True).print(
            f"[bold red]error[/] {error.field} = {error.value!r}\n  {error.remedy}", highlight=False
        )
        sys.exit(2)
