"""Cells one after the other, or side by side on several devices; what has been done is not done again."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from prunus.batches import has_bf16
from prunus.errors import PrunusError
from prunus.evaluation import in_fresh_process, keeping_warm
from prunus.recipe import dump_recipe, parse_recipe
from prunus.run import finished, run
from prunus.storage import cache_folder, claim_folder, disk_errors, is_full, locked, write_text
from prunus.studies.outcome import Outcome, Results, outcome_of
from prunus.studies.study import Cell, Study, cells_of, folder_of, telling_first
from prunus.typed import places_in

RECORD, RESULTS, KNOWN, MADE, KEPT = "study.json", "results.json", "known.json", "made.json", "dense"
GOES_ON = "start it again, and it goes on where it was"
IMPORTED = ("prunus.studies", "prunus.training.trainer", "datasets", "matplotlib.pyplot")
"""What every cell needs, and takes long to import."""
LITTLE = 64 << 20
"""Bytes: where a cell has failed with less than this free, the disk counts as full."""


def carry_out(
    study: Study,
    smoke: bool = False,
    only: Callable[[str], bool] = lambda name: True,
    devices: Sequence[str] = ("",),
    command: str = "",
    console: Console | None = None,
    known: Results | None = None,
) -> Results:
    """Carries out the cells of a study that are not done yet, each in a process of its own, the most telling first.

    A cell that fails is named in the results, and the others go on; where the disk is full, nothing does. The results are written after
    every cell, so a study that is killed goes on where it was.

    Args:
        smoke: the small version, in a folder of its own.
        only: which cells, by name; the others stay as they are.
        devices: one process at a time for each: "" (this machine's own choice), "cpu", or numbers of GPUs such as "0". Where "cpu" stands
            several times, each has its share of the cores.
        command: what the results say they come from.
        known: results of this study from elsewhere: cells that have an outcome there, of the same recipe, are done. They are kept in the
            folder, for the next time.

    Returns:
        Everything that is known now, as it also lies in the study's folder as `results.json`.

    Raises:
        PrunusError: a cell's recipe is wrong, before any begins; the folder holds other things, or another process is at work in it; the disk
            is full.
    """
    console = console or Console()
    cells = cells_of(study, smoke)
    places_in(study)
    claim_folder(study.output, RECORD)
    folder = folder_of(study, smoke)
    with disk_errors(folder, GOES_ON), locked(folder):
        write_text(study.output / RECORD, study.model_dump_json(indent=2) + "\n")
        return _carry_out(study, folder, cells, only, devices, command, console, known)


def _carry_out(
    study: Study, folder: Path, cells: Sequence[Cell], only: Callable[[str], bool], devices: Sequence[str], command: str, console: Console,
    known: Results | None,
) -> Results:  # fmt: skip
    here = machine(devices)
    if known is not None:
        write_text(folder / KNOWN, known.model_dump_json(indent=2) + "\n")
    known = _known_in(folder, known)
    elsewhere = _from_elsewhere(cells, known)
    done = elsewhere | _done(cells)
    failed: dict[str, str] = {}
    full: list[str] = []
    waiting = Waiting(cell for cell in telling_first(study, cells) if only(cell.name) and cell.name not in done)
    console.print(f"{study.title}: {len(cells)} cells, {len(waiting)} to do")
    if known is not None:
        others = len(known.outcomes) - len(elsewhere)
        console.print(
            f"known from elsewhere: {len(elsewhere)} cells" + (f"; {others} are of other recipes" if others else "")
        )

    def do(cell: Cell, device: str) -> None:
        console.print(f"begins: {cell.name}{f' on {device}' if device else ''}")
        recipe, imports = dump_recipe(cell.recipe), places_in(cell.recipe)
        environment = _environment(device, devices)
        try:
            why = in_fresh_process(run_cell, recipe, str(folder / KEPT), imports=imports, environment=environment)
            full.extend([why] if why else [])
        except PrunusError as error:
            failed[cell.name] = str(error)
            console.print(f"[bold red]failed[/]: {cell.name}: {error}", highlight=False)

    for cell in cells:
        if cell.name in done:
            _tidy(study, cell)
    results = _results(study, cells, done, failed, command, here)
    _write(folder, results)
    free, running = list(devices), dict[Future[None], tuple[Cell, str]]()
    warm = keeping_warm(IMPORTED) if waiting else nullcontext()
    with warm, ThreadPoolExecutor(len(devices)) as pool:
        while running or (waiting and not full):
            while free and waiting and not full:
                cell, device = waiting.take(), free.pop(0)
                running[pool.submit(do, cell, device)] = cell, device
            for ended in wait(running, return_when=FIRST_COMPLETED).done:
                cell, device = running.pop(ended)
                ended.result()
                free.append(device)
                done |= _done([cell])
                waiting.ended(cell, cell.name in done)
                if cell.name in done:
                    _tidy(study, cell)
                results = _results(study, cells, done, failed, command, here)
                if not full:
                    _write(folder, results)
    if full:
        raise PrunusError("output", str(study.output), f"the disk is full ({full[0]}); make room. {GOES_ON}")
    return results


class Waiting:
    """Cells that are to be done, in their order; one whose dense model another cell is about to train comes when there is nothing else to do,
    since it would wait.
    """

    def __init__(self, cells: Iterable[Cell]):
        self._cells = {cell.name: (cell, _dense(cell)) for cell in cells}
        self._trained: set[str] = {""}
        self._running = Counter[str]()

    def __len__(self) -> int:
        return len(self._cells)

    def take(self) -> Cell:
        """The next one to begin with."""
        free = (name for name, (_, dense) in self._cells.items() if dense in self._trained or not self._running[dense])
        cell, dense = self._cells.pop(next(free, next(iter(self._cells))))
        self._running[dense] += 1
        return cell

    def ended(self, cell: Cell, well: bool) -> None:
        """Says that a cell that was taken is done, or has failed: then perhaps before its dense model was trained."""
        dense = _dense(cell)
        self._running[dense] -= 1
        if well:
            self._trained.add(dense)


def _dense(cell: Cell) -> str:
    """What the dense model of a cell follows from; nothing where it is not trained."""
    return cell.recipe.model_dump_json(include={"model", "task", "seed"}) if cell.recipe.model.train else ""


def _environment(device: str, devices: Sequence[str]) -> dict[str, str] | None:
    """What a process has to know to keep to a device."""
    if device != "cpu":
        return {"CUDA_VISIBLE_DEVICES": device} if device else None
    threads = max(1, (os.cpu_count() or 1) // devices.count("cpu"))
    return {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}


def run_cell(recipe: str, kept: str) -> str:
    """One cell, in the process that is made for it; its recipe is YAML.

    Args:
        kept: folder of the dense models' evaluations.

    Returns:
        Why no other cell can go on, either, because the disk is full; else nothing.
    """
    cell = parse_recipe(recipe, "cell")
    try:
        began = time.monotonic()
        run(cell, kept=Path(kept))
        said = {"seconds": time.monotonic() - began, "machine": machine()}
        write_text(cell.output / MADE, json.dumps(said, indent=2) + "\n")
    except Exception as error:  # the others are to go on
        if any(is_full(error, folder, LITTLE) for folder in (cell.output, cache_folder())):
            return str(error)
        if isinstance(error, PrunusError):
            raise
        traceback.print_exc()
        raise PrunusError("cell", type(error).__name__, f"it failed: {error}") from error
    return ""


def _tidy(study: Study, cell: Cell) -> None:
    """Removes what a finished cell no longer needs: the folders inside of its steps' folders, which hold models and checkpoints."""
    if study.keep_models or not cell.recipe.output.is_dir():
        return
    for step in cell.recipe.output.iterdir():
        for inside in step.iterdir() if step.is_dir() and re.match(r"\d+-", step.name) else ():
            if inside.is_dir():
                shutil.rmtree(inside)


def results_of(study: Study, smoke: bool = False, command: str = "", known: Results | None = None) -> Results:
    """What the study's folder holds now, and what was last said of the cells that failed and of the machine; nothing is carried out.

    Args:
        known: as of `carry_out`.
    """
    cells, folder = cells_of(study, smoke), folder_of(study, smoke)
    last = Results.load(folder / RESULTS) if (folder / RESULTS).exists() else None
    done = _from_elsewhere(cells, _known_in(folder, known)) | _done(cells)
    failed = {name: why for name, why in last.failed.items() if name not in done} if last else {}
    return _results(study, cells, done, failed, command, last.machine if last else machine())


def _done(cells: Sequence[Cell]) -> dict[str, Outcome]:
    """Name → outcome, of the cells that have one here."""
    reports = [(cell, finished(cell.recipe)) for cell in cells]
    return {
        cell.name: outcome_of(report, cell, *_made(cell.recipe.output))
        for cell, report in reports
        if report is not None
    }


def _made(folder: Path) -> tuple[dict[str, str], float | None]:
    """Where a cell was carried out, and how many seconds it took; nothing where it does not say."""
    try:
        said = json.loads((folder / MADE).read_bytes())
        return {str(name): str(value) for name, value in said["machine"].items()}, float(said["seconds"])
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}, None


def _known_in(folder: Path, known: Results | None) -> Results | None:
    """What is known from elsewhere: what is given, or was given before."""
    file = folder / KNOWN
    return Results.load(file) if known is None and file.exists() else known


def _from_elsewhere(cells: Sequence[Cell], known: Results | None) -> dict[str, Outcome]:
    """Name → outcome of the same recipe, from elsewhere."""
    if known is None:
        return {}
    outcomes = {frozenset(one.everything().items()): one for one in known.outcomes}
    found = {}
    for cell in cells:
        one = outcomes.get(frozenset({"part": cell.part, **cell.labels, "seed": str(cell.seed)}.items()))
        if one is not None and one.recipe == cell.identity:
            found[cell.name] = one.model_copy(update={"machine": one.machine or known.machine})
    return found


def _results(
    study: Study, cells: Sequence[Cell], done: Mapping[str, Outcome], failed: dict[str, str], command: str, made_on: dict[str, str]
) -> Results:  # fmt: skip
    return Results(
        title=study.title, note=study.note, command=command, machine=made_on, planned=len(cells), failed=failed,
        outcomes=[done[cell.name] for cell in cells if cell.name in done],
    )  # fmt: skip


def _write(folder: Path, results: Results) -> None:
    write_text(folder / RESULTS, results.model_dump_json(indent=2) + "\n")


def machine(devices: Sequence[str] = ("",)) -> dict[str, str]:
    """What figures depend on beside the code."""
    told = _environment(devices[0], devices) or {}
    found: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads of a cell": told.get("OMP_NUM_THREADS", torch.get_num_threads()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    if torch.cuda.is_available() and told.get("CUDA_VISIBLE_DEVICES") != "":
        found["device"] = torch.cuda.get_device_name()
    elif not has_bf16("cpu"):
        found["bf16"] = "as fp32"
    return {name: str(value) for name, value in found.items()}
