"""Commands on finished models: export, quantise, compare."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from prunus.cli.options import ImportOption
from prunus.errors import PrunusError
from prunus.evaluation import read_task
from prunus.export import Graphs, export_folder, write_gguf
from prunus.quantise import Quantisation, quantise_folder
from prunus.recipe import Measure
from prunus.report import side_by_side
from prunus.storage import results_folder


def export(
    model: str,
    to: Annotated[str, typer.Option(help="onnx, openvino, torch or gguf.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder or file to make; by default beside MODEL, with -onnx (and so on) or .gguf after its name; of a hub id here."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="A task whose items are traced, by name or settings; else drawn pictures and questions."),
    ] = None,
    graphs: Annotated[
        Graphs,
        typer.Option(help="One forward pass, or the stages of generation; auto takes these where they can be had."),
    ] = "auto",
    extensions: ImportOption = None,
) -> None:
    """Writes MODEL (folder or hub id) as graphs of another runtime, which is run and compared with the model before it counts; or as
    a GGUF file, of a plain LLaMA."""
    if to == "gguf":
        if task is not None or graphs != "auto":
            option, given = ("--task", task) if task is not None else ("--graphs", graphs)
            raise PrunusError(option, given, "a GGUF file holds weights and no graph; leave it out")
        typer.echo(f"gguf: {write_gguf(model, out or _beside(model, '.gguf'))}")
        return
    chosen = None if task is None else read_task(task, "--task")
    done = export_folder(model, out or _beside(model, f"-{to}"), to, task=chosen, graphs=graphs)
    for graph in done.graphs:
        typer.echo(
            f"{graph.name:<24}{graph.difference:.1e} from the model on {graph.batches} batches, takes "
            + ("any batch and length" if graph.sizes == "any" else "only the sizes that it was traced with")
        )
    if done.lacking is not None:
        typer.echo(f"no graphs of generation: {done.lacking}")
    typer.echo(f"{done.format}: {done.folder}")


def quantise(
    model: str,
    to: Annotated[str, typer.Option(help="int8 or int4.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to make; by default beside MODEL, with -int8 or -int4 after its name; of a hub id here."
        ),
    ] = None,
    group: Annotated[int, typer.Option(min=1, help="Of int4: weights of a row that share a scale.")] = 32,
    include: Annotated[
        list[str] | None, typer.Option(help="Glob over module paths and towers. May be repeated.")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Glob that takes away again. May be repeated.")] = None,
    extensions: ImportOption = None,
) -> None:
    """Keeps the weights of MODEL's linear layers (folder or hub id) in 8 or 4 bits, by torchao, and counts zeros before and after."""
    settings: dict[str, Any] = {"to": to, "group": group, "include": include or (), "exclude": exclude or ()}
    folder = out or _beside(model, f"-{to}")
    found = quantise_folder(model, folder, Quantisation(**settings))
    typer.echo(str(found))
    for reason, (count, weights) in found.left.items():
        typer.echo(f"left as they were: {count} matrices of {weights:,} weights: {reason}")
    typer.echo(str(folder))


def _beside(model: str, ending: str) -> Path:
    """Where a result lies that nobody has given a name: beside a folder; of a hub id in the working directory."""
    folder = Path(model)
    if not folder.is_dir():
        return Path(folder.name + ending)
    named = folder if folder.name not in ("", "..") else Path(os.path.abspath(folder))
    return named.parent / f"{named.name}{ending}"


def compare(
    models: list[str],
    task: Annotated[str, typer.Option(help="A task's name, or its settings as JSON.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Evaluate this many items only.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Items of the batch that is timed and weighed.")] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls, all models in turn.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder for comparison.json, comparison.png and comparison.html.")] = Path(
        "comparison"
    ),
    extensions: ImportOption = None,
) -> None:
    """Puts MODELS (folders or hub ids, dense or not) side by side: quality on a task, parameters, multiply-accumulates, bytes, latency,
    memory, with a picture."""
    measure = Measure(batch_size=batch_size, repeats=repeats)
    place = results_folder(out, "--out")
    found = side_by_side(models, read_task(task, "--task"), measure, limit)
    found.save(place)
    Console().print(found.table())
    typer.echo(f"{place / 'comparison.json'}   {place / 'comparison.html'}")
