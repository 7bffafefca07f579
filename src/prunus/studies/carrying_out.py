"""Cells one after the other, or side by side on several devices; what has been done is not done again."""

from __future__ import annotations

import os
import platform
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
import transformers
from rich.console import Console

from prunus.errors import PrunusError
from prunus.evaluation import in_fresh_process
from prunus.recipe import dump_recipe, parse_recipe
from prunus.run import finished, run
from prunus.storage import claim_folder, locked, write_text
from prunus.studies.outcome import Outcome, Results, outcome_of
from prunus.studies.study import Cell, Study, cells_of, folder_of
from prunus.typed import places_in

RECORD, RESULTS = "study.json", "results.json"


def carry_out(
    study: Study,
    smoke: bool = False,
    only: Callable[[str], bool] = lambda name: True,
    devices: Sequence[str] = ("",),
    command: str = "",
    console: Console | None = None,
) -> Results:
    """Carries out the cells of a study that are not done yet, each in a process of its own.

    A cell that fails is named in the results, and the others go on. The results are written after every cell, so a study that is
    killed goes on where it was.

    Args:
        smoke: the small version, in a folder of its own.
        only: which cells, by name; the others stay as they are.
        devices: one process at a time for each: "" (this machine's own choice), "cpu", or numbers of GPUs such as "0".
        command: what the results say they come from.

    Returns:
        Everything that is known now, as it also lies in the study's folder as `results.json`.

    Raises:
        PrunusError: a cell's recipe is wrong, before any begins; or the folder holds other things.
    """
    console = console or Console()
    cells = cells_of(study, smoke)
    places_in(study)
    claim_folder(study.output, RECORD)
    folder = folder_of(study, smoke)
    with locked(folder):
        write_text(study.output / RECORD, study.model_dump_json(indent=2) + "\n")
        done = _done(cells)
        failed: dict[str, str] = {}
        waiting = [cell for cell in cells if only(cell.name) and cell.name not in done]
        console.print(f"{study.title}: {len(cells)} cells, {len(waiting)} to do")
        free: SimpleQueue[str] = SimpleQueue()
        for device in devices:
            free.put(device)

        def do(cell: Cell) -> Cell:
            device = free.get()
            try:
                console.print(f"begins: {cell.name}{f' on {device}' if device else ''}")
                chosen = {"CUDA_VISIBLE_DEVICES": "" if device == "cpu" else device} if device else None
                recipe = dump_recipe(cell.recipe)
                in_fresh_process(run_cell, recipe, imports=places_in(cell.recipe), environment=chosen)
            except PrunusError as error:
                failed[cell.name] = str(error)
                console.print(f"[bold red]failed[/]: {cell.name}: {error}", highlight=False)
            finally:
                free.put(device)
            return cell

        results = _results(study, cells, done, failed, command)
        _write(folder, results)
        with ThreadPoolExecutor(len(devices)) as pool:
            for cell in pool.map(do, waiting):
                done |= _done([cell])
                results = _results(study, cells, done, failed, command)
                _write(folder, results)
    return results


def run_cell(recipe: str) -> str:
    """One cell, in the process that is made for it; its recipe is YAML."""
    try:
        run(parse_recipe(recipe, "cell"))
    except PrunusError:
        raise
    except Exception as error:  # the others are to go on
        traceback.print_exc()
        raise PrunusError("cell", type(error).__name__, f"it failed: {error}") from error
    return "done"


def results_of(study: Study, smoke: bool = False, command: str = "") -> Results:
    """What the study's folder holds now; nothing is carried out."""
    cells = cells_of(study, smoke)
    return _results(study, cells, _done(cells), {}, command)


def _done(cells: Sequence[Cell]) -> dict[str, Outcome]:
    """Name → outcome, of the cells that have one."""
    reports = [(cell, finished(cell.recipe)) for cell in cells]
    return {
        cell.name: outcome_of(report, cell.part, dict(cell.labels), cell.seed)
        for cell, report in reports
        if report is not None
    }


def _results(
    study: Study, cells: Sequence[Cell], done: Mapping[str, Outcome], failed: dict[str, str], command: str
) -> Results:
    return Results(
        title=study.title, note=study.note, command=command, machine=machine(), planned=len(cells), failed=failed,
        outcomes=[done[cell.name] for cell in cells if cell.name in done],
    )  # fmt: skip


def _write(folder: Path, results: Results) -> None:
    write_text(folder / RESULTS, results.model_dump_json(indent=2) + "\n")


def machine() -> dict[str, str]:
    """What figures depend on beside the code."""
    found: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
    return {name: str(value) for name, value in found.items()}
