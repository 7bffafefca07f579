"""A saved model on a task: metrics, memory, seconds."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from pydantic import TypeAdapter, ValidationError

from prunus.batches import default_device, has_bf16
from prunus.checkpoint import CHECKSUMS, load_model, local_folder
from prunus.cost import peak_memory
from prunus.errors import PrunusError, refusing
from prunus.evaluation.fresh import in_fresh_process
from prunus.storage import write_text
from prunus.tasks import AnyTask, Exhibit, Task
from prunus.typed import Typed, first_problem, places_in, refuse_nameless


@dataclass(frozen=True)
class Evaluation:
    """What a process found out about a saved model."""

    metrics: dict[str, float]
    """As the task names them."""
    peak_memory: int
    """Peak resident bytes of a process that loads the model and runs one batch."""
    seconds: float
    """That the metrics took."""
    exhibits: list[Exhibit] = field(default_factory=list)
    """What the model makes of single items, if that was asked for."""


def evaluate_here(
    path: str | Path, task: Task, batch_size: int, limit: int | None = None, exhibits: int = 0
) -> Evaluation:
    """Loads a saved model with its stock class and evaluates it, in this process.

    Args:
        path: folder of the model, or hub id.
        batch_size: items of the batch that memory is measured with.
        limit: items of the evaluation split; None takes all.
        exhibits: how many items to show, with what the model makes of them.

    Raises:
        PrunusError: the task has no data, or is not one for this model.
    """
    folder = local_folder(path)
    task = task.for_model(folder)
    task.check()
    task.check_split("evaluation")
    task.check_model(folder)
    model = load_model(folder).eval()
    with refusing("task", task.name, f"a {type(model).__name__} cannot be evaluated on it, so name another task"):
        task.example(model, batch_size)()
        peak = peak_memory()
        model.to(default_device())
        start = time.perf_counter()
        metrics = task.measure(model, limit)
        seconds = time.perf_counter() - start
        with torch.no_grad():
            shown = task.exhibits(model, exhibits, limit) if exhibits else []
    return Evaluation(metrics, peak, seconds, shown)


def evaluate_elsewhere(
    path: Path, task: Task, batch_size: int, limit: int | None = None, exhibits: int = 0
) -> Evaluation:
    """As `evaluate_here`, in a new process, which proves that the files suffice."""
    places, settings = places_in(task), task.model_dump_json()
    refuse_nameless(task, read_task(settings))
    found = in_fresh_process(_evaluate, str(path), settings, batch_size, limit, exhibits, imports=places)
    return _evaluation(found)


def evaluate_once(
    kept: Path, path: Path, task: Task, batch_size: int, limit: int | None = None, exhibits: int = 0
) -> Evaluation:
    """As `evaluate_elsewhere`, unless that has been done.

    Args:
        kept: a folder of evaluations: one of the same model, task, data, versions and device that lies there is taken as it is, and a new one
            put there. A model without checksums is evaluated anew, and so is a task of one's own, whose code nobody knows.
    """
    asked = (task.model_dump_json(), task.data_state(), batch_size, limit, exhibits)
    file = None if places_in(task) else _place(kept, path, *asked)
    found = None if file is None else _read(file)
    if found is not None:
        return found
    new = evaluate_elsewhere(path, task, batch_size, limit, exhibits)
    if file is not None:
        write_text(file, json.dumps(asdict(new)))
    return new


def _place(kept: Path, path: Path, *asked: Any) -> Path | None:
    """The file of an evaluation: its name tells the model, all that was asked, and what computes; none where nothing tells the weights."""
    if not (path / CHECKSUMS).is_file():
        return None
    device = default_device().type
    conditions = [version("prunus"), torch.__version__, transformers.__version__, device, has_bf16(device)]
    key = hashlib.sha256(json.dumps([*asked, *conditions]).encode())
    for file in sorted(one for one in path.iterdir() if one.is_file() and one.suffix != ".safetensors"):
        key.update(file.name.encode() + file.read_bytes())  # the weights' checksums among them
    return kept / f"{key.hexdigest()[:16]}.json"


def _read(file: Path) -> Evaluation | None:
    """An evaluation that was kept; none where there is none, or it is damaged."""
    try:
        return _evaluation(json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _evaluation(found: dict[str, Any]) -> Evaluation:
    return Evaluation(**found | {"exhibits": [Exhibit(**one) for one in found["exhibits"]]})


def _evaluate(path: str, settings: str, batch_size: int, limit: int | None, exhibits: int) -> dict[str, Any]:
    return asdict(evaluate_here(path, read_task(settings), batch_size, limit, exhibits))


def read_task(text: str, source: str = "task") -> Task:
    """A task by its name, or by its settings as JSON; `source` names them in errors.

    Raises:
        PrunusError: there is no such task, or a setting is wrong.
    """
    settings = text if text.lstrip().startswith("{") else json.dumps({"name": text})
    try:
        task: Task = TypeAdapter[Task](AnyTask).validate_json(settings)
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["type"] == "json_invalid":
            raise PrunusError(source, text, f"give a task's name, or settings as JSON: {problem['msg']}") from None
        raise first_problem(error, Typed, source) from None
    return task
