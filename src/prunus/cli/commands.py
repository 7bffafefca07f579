"""The command line: thin, every command is a call of the library."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console

from prunus.anatomy import LeftDense, anatomy, survey
from prunus.checkpoint import bare_model, local_folder, plan_of, sparsity_in, verify
from prunus.cli.narrowing import plan, sweep
from prunus.cli.options import ImportOption
from prunus.cli.outward import compare, export, quantise
from prunus.errors import PrunusError
from prunus.evaluation import evaluate_here, harness_scores, lmms_scores, read_task
from prunus.metric import written
from prunus.models import as_published
from prunus.models import convert as convert_file
from prunus.plan import SparsityPlan
from prunus.recipe import Recipe, demo_recipe, load_recipe
from prunus.report import Report, terminal_table, write_report
from prunus.run import check_all, run
from prunus.storage import results_file, write_text
from prunus.studies import Results, carry_out, folder_of, load_study, results_of, study_file, weighed, write_page
from prunus.unstructured import recorded_sparsity

app = typer.Typer(
    help="Makes vision-language transformers small: prune, narrow, repair, and get a plain transformers checkpoint.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip

TOGETHER = ("demo", "compress")
"""Commands that share their work out among the processes that a launcher has started; of any other every process would do all, and write it to the same place."""


@app.callback()
def alone(context: typer.Context) -> None:
    """Refuses a launcher of several processes for commands that are for one."""
    count, name = os.environ.get("WORLD_SIZE", "1"), context.invoked_subcommand
    if count != "1" and name not in TOGETHER:
        raise PrunusError(
            "WORLD_SIZE", count, f"prunus {name} is for one process; start it without torchrun or accelerate launch, which are for {' and '.join(TOGETHER)}"
        )  # fmt: skip


SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Change a field: steps.0.method.ratio=0.7. May be repeated.")
]
VariantOption = Annotated[str | None, typer.Option(help="Which recipe, of a file with several, such as wanda/2:4.")]


@app.command()
def demo(changes: SetOption = None, extensions: ImportOption = None) -> None:
    """The main job on real input: trains a small BLIP on easy-VQA, halves it with UPop, and reports."""
    _compress(demo_recipe(tuple(changes or ())))


@app.command()
def compress(
    recipe: Path,
    variant: VariantOption = None,
    changes: SetOption = None,
    extensions: ImportOption = None,
) -> None:
    """Carries out RECIPE (YAML). Started again after an interruption, it goes on where it was."""
    _compress(load_recipe(recipe, tuple(changes or ()), variant))


@app.command()
def check(
    recipe: Path,
    variant: VariantOption = None,
    changes: SetOption = None,
    extensions: ImportOption = None,
) -> None:
    """Says what is wrong with RECIPE, its model and its data, and decodes every picture once. Nothing is trained."""
    chosen = load_recipe(recipe, tuple(changes or ()), variant)
    check_all(chosen)
    wrong = 0
    for error in chosen.task.damaged():
        typer.echo(error)
        wrong += 1
    if wrong:
        raise PrunusError(
            "task",
            f"{wrong} pictures",
            "they cannot be read, see above; mend them, or leave their rows out: on_broken: skip",
        )
    for remark in chosen.task.remarks():
        typer.echo(f"note: {remark}")
    typer.echo("nothing is wrong with recipe, model and data")


def _compress(recipe: Recipe) -> None:
    console = Console()
    report = run(recipe, console)
    if report is None:
        return
    console.print(_table(report))
    typer.echo(f"report: {recipe.output / 'report.html'}   model: {report.folders['compressed']}")


def _table(report: Report) -> object:
    return terminal_table(report.rows, report.outcome)


@app.command()
def inspect(
    model: str,
    units: Annotated[bool, typer.Option("--units", help="List every unit by its name.")] = False,
    verified: Annotated[bool, typer.Option("--verify", help="Compare the weights with their checksums.")] = False,
    published: Annotated[
        bool, typer.Option("--as-published", help="Also count as UPop's paper does, for the models that it has.")
    ] = False,
    extensions: ImportOption = None,
) -> None:
    """What MODEL (hub id, folder or config file) is made of: towers, blocks, units, costs. Of a pruned folder the zeros are
    counted; otherwise no weights are read."""
    if verified:
        known = verify(local_folder(model))
        typer.echo(
            "weights and config are as they were saved" if known else "the folder has no checksums: nothing to compare"
        )
    with torch.device("meta"):
        built = bare_model(model)
    plan, sparsity = plan_of(built), recorded_sparsity(built)
    parts = anatomy(built)
    typer.echo(str(parts))
    if units:
        typer.echo(f"\n{'unit':<66}{'tower':<16}{'channels':>9}{'parameters/channel':>20}")
        for unit in parts:
            typer.echo(f"{unit.name:<66}{unit.tower:<16}{unit.channels:>9,}{unit.channel_cost:>20,}")
    if published:
        count = as_published(built)
        typer.echo(
            f"\nas published: {count.parameters:,} parameters, {count.parameters + count.masks:,} with masks, "
            f"{count.flops / 1e9:.4f} G multiply-accumulates ({count.macs / 1e9:.4f} G without norms and resizing)"
        )
    if sparsity is not None:
        is_packed = getattr(built.config, "quantization_config", None) is not None
        counted = sparsity_in(Path(model)) if Path(model).is_dir() and not is_packed else None
        told = "as recorded" if counted is None else "in place"
        typer.echo(f"\npruned by prunus ({sparsity.method.get('method')}), zeros {told}:\n{counted or sparsity}")
        if counted is not None:
            _say_what_differs(sparsity, counted)
        typer.echo("  calibration: " + ", ".join(f"{name} {value}" for name, value in sparsity.calibration.items()))
    found = survey(built, parts=parts)
    if found.left_dense:
        typer.echo("\nno candidates of unstructured pruning, of all weights in the blocks:")
    for reason, inside in _by_reason(found.left_dense).items():
        share = sum(part.weights for part in inside) / found.weights
        typer.echo(
            f"  {share:8.2%}   {reason}: {inside[0].name}" + (f" and {len(inside) - 1} more" if inside[1:] else "")
        )
    if plan is not None:
        kept = sum(len(unit.kept) for unit in plan.units.values())
        total = sum(unit.channels for unit in plan.units.values())
        typer.echo(
            f"\nnarrowed by prunus: {plan.ratio:.2%} of the searched units' cost removed, {kept:,} of {total:,} channels kept; "
            "the table shows what is left"
        )


def _by_reason(left: Sequence[LeftDense]) -> dict[str, list[LeftDense]]:
    reasons: dict[str, list[LeftDense]] = {}
    for part in left:
        reasons.setdefault(part.reason, []).append(part)
    return reasons


def _say_what_differs(recorded: SparsityPlan, counted: SparsityPlan) -> None:
    there = counted.matrices
    wrong = [
        name for name, matrix in recorded.matrices.items() if name not in there or there[name].pruned != matrix.pruned
    ]
    if not wrong:
        typer.echo("  its weights have the zeros of the record")
        return
    first = there[wrong[0]].pruned if wrong[0] in there else "no such matrix"
    typer.echo(
        f"  NOT as recorded ({recorded.sparsity:.2%}): the weights differ in {len(wrong)} of {len(recorded.matrices)} matrices, such "
        f"as {wrong[0]} with {recorded.matrices[wrong[0]].pruned:,} zeros recorded and {first} there"
    )


@app.command()
def evaluate(
    model: str,
    task: Annotated[str, typer.Option(help="A task's name, or its settings as JSON.")] = "easy_vqa",
    tasks: Annotated[
        str | None, typer.Option(help="Tasks of lm-evaluation-harness instead, such as mmlu,arc_easy (extra `eval`).")
    ] = None,
    harness: Annotated[
        Literal["lm-eval", "lmms-eval"],
        typer.Option(
            help="Whose --tasks they are: lm-evaluation-harness, or lmms-eval, for models that speak about images."
        ),
    ] = "lm-eval",
    limit: Annotated[int | None, typer.Option(min=1, help="Evaluate this many items only.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Batch for the memory measurement, and of the harness.")] = 16,
    json_path: Annotated[
        str | None, typer.Option("--json", help="Write the figures here; - is standard output.")
    ] = None,
    extensions: ImportOption = None,
) -> None:
    """Loads MODEL (folder or hub id) with its stock transformers class and evaluates it on a task."""
    if tasks is None and harness != "lm-eval":
        raise PrunusError("--harness", harness, "name its tasks, with --tasks")
    place = results_file(json_path, "--json") if json_path and json_path != "-" else None
    if tasks is not None:
        scores = {"lm-eval": harness_scores, "lmms-eval": lmms_scores}[harness]
        names = [name.strip() for name in tasks.split(",")]
        figures: dict[str, Any] = {"metrics": scores(local_folder(model), names, limit, batch_size)}
        texts = {name: f"{value:.4f}" for name, value in figures["metrics"].items()}  # as the harness writes them
    else:
        chosen = read_task(task, "--task")
        figures = asdict(evaluate_here(model, chosen, batch_size, limit))
        texts = written(figures["metrics"], chosen.metrics)
    text = json.dumps(figures)
    if json_path == "-":
        typer.echo(text)
    elif place is not None:
        write_text(place, text + "\n")
    else:
        for name, value in texts.items():
            typer.echo(f"{name:<40}{value:>12}")


@app.command()
def convert(
    file: str,
    out: str,
    family: Annotated[
        str | None, typer.Option("--as", help="Its family, such as blip_vqa; else told from its names.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the images in pixels; positions are interpolated.")
    ] = None,
    head_width: Annotated[
        int | None, typer.Option(min=1, help="Width of an attention head, if not that of the published models.")
    ] = None,
    extensions: ImportOption = None,
) -> None:
    """Makes OUT, a folder that transformers loads, of a published checkpoint FILE. No code in the file is run."""
    model = convert_file(file, out, family, image_size=image_size, head_width=head_width)
    typer.echo(f"{type(model).__name__}, {model.num_parameters():,} parameters: {out}")


app.command()(export)
app.command()(quantise)
app.command()(compare)
app.command()(plan)
app.command()(sweep)


@app.command()
def bench(
    study: Annotated[str, typer.Argument(help="A YAML file, or the name of a study of prunus, such as structured.")],
    data: Annotated[Path | None, typer.Option(help="The folder of the data that the study reads.")] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="The small version, which says nothing but that it runs.")
    ] = False,
    only: Annotated[str, typer.Option(help="Cells to carry out, a glob over their names, such as vqa/upop/*.")] = "*",
    devices: Annotated[
        str, typer.Option(help="One cell at a time on each: numbers of GPUs, or cpu, such as 0,1,2.")
    ] = "",
    output: Annotated[Path | None, typer.Option(help="Folder of the study, instead of its own.")] = None,
    drawn: Annotated[
        bool, typer.Option("--draw", help="Draw the page of what is there, and carry nothing out.")
    ] = False,
    known: Annotated[
        Path | None, typer.Option(help="A results.json of this study from elsewhere: its cells are done.")
    ] = None,
    extensions: ImportOption = None,
) -> None:
    """Carries out a STUDY: recipes repeated with other methods, budgets and seeds. What is done is not done again."""
    chosen = load_study(study_file(study), None if data is None else str(data), None if output is None else str(output))
    command = (
        f"prunus bench {study}"
        + (" --data DATA" if data else "")
        + (" --smoke" if smoke else "")
        + (" --known RESULTS" if known else "")
    )
    elsewhere = None if known is None else Results.load(known)
    results = (
        results_of(chosen, smoke, command, elsewhere)
        if drawn
        else carry_out(
            chosen, smoke, lambda name: fnmatchcase(name, only), devices.split(","), command, known=elsewhere
        )
    )
    page = write_page(results, chosen.findings, folder_of(chosen, smoke))
    for finding, evidence in weighed(results, chosen.findings):
        typer.echo(f"{evidence.verdict:<15}{finding.claim}: {evidence.said}")
    typer.echo(f"{len(results.outcomes)} of {results.planned} cells: {page}")
    if results.failed:
        raise PrunusError(
            "study",
            f"{len(results.failed)} cells",
            f"they failed, such as {next(iter(results.failed))}; see above, and start it again",
        )


@app.command()
def report(runs: list[Path]) -> None:
    """Prints the table of finished RUNS and draws their pages again."""
    console = Console()
    for folder in runs:
        finished = Report.load(folder)
        write_report(finished, folder)
        console.print(_table(finished))
