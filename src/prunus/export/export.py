"""`export`: a model as graphs in a folder, which is there once every graph has been run and computes what the model does."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from prunus.checkpoint import load_model, local_folder
from prunus.cost import human
from prunus.errors import PrunusError
from prunus.export.checking import TOLERANCE, alike, difference, reference
from prunus.export.formats import Format, format_of
from prunus.export.inputs import real_batches
from prunus.export.stages import Stage, ready, stages
from prunus.refusals import refuse_unusable
from prunus.storage import is_full, vacant_folder, vacant_place, write_text
from prunus.tasks import Task, copy_processor

CHECKED = "checked.json"
"""What the check has found, beside the graphs."""
Graphs = Literal["auto", "forward", "generation"]


@dataclass(frozen=True)
class Graph:
    """One exported graph, as it was found when it was run."""

    name: str
    """`model` is a forward pass; others are stages of generation, such as `prefill` and `decode`."""
    difference: float
    """The largest between its outputs and the model's, as `TOLERANCE` counts them."""
    sizes: Literal["any", "as traced"]
    """Whether it takes other batches and lengths than those that it was traced with, as was tried."""
    batches: int
    """On how many batches it was compared."""


@dataclass(frozen=True)
class Exported:
    """What became of a model."""

    folder: Path
    format: str
    graphs: tuple[Graph, ...]
    lacking: str | None = None
    """Why there are no graphs of generation, of a model that generates; None if there are, or none were asked for."""


def export_folder(
    path: str | Path, folder: str | Path, to: str, task: Task | None = None, graphs: Graphs = "auto"
) -> Exported:
    """As `export`, of a saved model, whose tokenizer and processor go along.

    Args:
        path: folder of the model, or hub id.
        task: takes its items as inputs; None draws pictures and asks about them.
    """
    _refuse(to, folder)
    source = local_folder(path)
    model = load_model(source)
    refuse_unusable(model, "")
    return export(model, folder, to, real_batches(model, source, task), graphs, source)


def export(
    model: Any, folder: str | Path, to: str, batches: Sequence[Mapping[str, Any]], graphs: Graphs = "auto", source: Path | None = None
) -> Exported:  # fmt: skip
    """Writes a model as graphs of another runtime, in fp32, once that runtime has computed what the model computes.

    Batch and lengths stay free where the exporter can keep them; graphs that it cannot trace so, or that compute something
    else at other sizes, are traced again for the sizes of the first batch alone, and the result says so.

    Args:
        model: of transformers, with its weights; it stays as it is, unless its weights are not fp32: then they are now.
        folder: to be made; it takes its name when everything is right.
        to: `onnx`, `openvino` or `torch`.
        batches: real inputs. The first is traced; all are compared.
        graphs: `forward`: one graph of a forward pass; `generation`: one for each stage of `generate`; `auto`: those of generation
            where the model generates and the exporter can, else the other.
        source: folder whose tokenizer and processor are copied.

    Returns:
        The graphs, with their differences.

    Raises:
        PrunusError: the exporter cannot export the model, in its own words; the result computes something else; or the model itself computes
            NaN or infinity, which nothing can be held against.
    """
    kind, place = _refuse(to, folder)
    if not batches:
        raise PrunusError("batches", list(batches), "give at least one batch of real inputs")
    refuse_unusable(model, "")
    if graphs == "generation" and not model.can_generate():
        raise PrunusError("graphs", graphs, f"a {type(model).__name__} does not generate; take forward")
    model, lacking = model.float(), None
    with vacant_folder(place) as partial, _silence():
        _refuse_without_room(model, partial, place)
        if graphs != "forward" and model.can_generate():
            try:
                return _finish(model, partial, place, kind, batches, True, None, source)
            except PrunusError as error:
                if graphs == "generation" or is_full(error, partial):
                    raise
                lacking = error.remedy
                _empty(partial)
        return _finish(model, partial, place, kind, batches, False, lacking, source)


def _refuse(to: str, folder: str | Path) -> tuple[Format, Path]:
    """The format and the folder, if both can be."""
    kind, place = format_of(to), vacant_place(folder)
    kind.exporter(True)
    return kind, place


def _refuse_without_room(model: Any, partial: Path, place: Path) -> None:
    """Before minutes of tracing; some libraries end the process when a disk is full."""
    needed, free = 4 * sum(weight.numel() for weight in model.parameters()), shutil.disk_usage(partial).free
    if free < needed:
        raise PrunusError(
            "folder", str(place), f"its disk has {human(free, 'B')} free, and the weights alone are {human(needed, 'B')}; make room, or take another"
        )  # fmt: skip


def _finish(
    model: Any, partial: Path, place: Path, kind: Format, batches: Sequence[Mapping[str, Any]], generation: bool, lacking: str | None,
    source: Path | None,
) -> Exported:  # fmt: skip
    with ready(model, generation):
        given = [_stages(model, batch, generation) for batch in batches]
        for name, stage in (pair for each in given for pair in each.items()):
            with _explaining(type(model).__name__, f"its {name} does not run on these inputs"):
                reference(stage, name)
        found = _write(model, partial, kind, given)
    done = Exported(place, kind.name, found, lacking)
    found_by = {"folder": None, "tolerance": TOLERANCE, "run_with": {"device": "cpu", **kind.running}}
    write_text(partial / CHECKED, json.dumps({**asdict(done), **found_by}, indent=1) + "\n")
    if source is not None:
        copy_processor(source, partial)
    return done


def _stages(model: Any, batch: Mapping[str, Any], generation: bool) -> dict[str, Stage]:
    what = "generate" if generation else "forward"
    with _explaining(type(model).__name__, f"the exporter cannot take its {what} apart"):
        return stages(model, batch, generation)


def _write(model: Any, folder: Path, kind: Format, given: Sequence[dict[str, Stage]]) -> tuple[Graph, ...]:
    """Traces every stage, saves all, loads them as a user does, and compares; free sizes first."""
    components, fixed = {}, set[str]()
    for name, stage in given[0].items():
        try:
            components[name] = _traced(kind, stage, name, dynamic=True)
        except PrunusError:
            components[name] = _traced(kind, stage, name, dynamic=False)
            fixed.add(name)
    runners = _saved(model, folder, kind, components)
    found = {}
    for name in components:
        try:
            found[name] = _compared(runners[name], name, given, name in fixed)
        except PrunusError:
            if name in fixed:
                raise
            components[name] = _traced(kind, given[0][name], name, dynamic=False)
            fixed.add(name)
    again = [name for name in components if name not in found]
    if again:
        runners = _saved(model, folder, kind, components)
        found |= {name: _compared(runners[name], name, given, True) for name in again}
    return tuple(found[name] for name in components)


def _traced(kind: Format, stage: Stage, name: str, dynamic: bool) -> Any:
    from transformers.exporters import ExportedComponent

    exporter, config = kind.exporter(dynamic)
    torch._dynamo.reset()
    with _explaining(type(stage.module).__name__, f"the exporter cannot export its graph {name}"):
        program, metadata = exporter.export_program(stage.module, copy.deepcopy(stage.inputs), config)
    metadata.export_config = json.loads(config.to_json_string())
    return ExportedComponent(program, metadata)


def _saved(model: Any, folder: Path, kind: Format, components: dict[str, Any]) -> Any:
    """The runners of graphs that were written and read again."""
    from transformers.exporters import ExportedModel

    _, config = kind.exporter(True)
    with _explaining(type(model).__name__, f"its graphs cannot be written and read as {kind.name}"):
        generation = getattr(model, "generation_config", None)
        ExportedModel(components, config.export_format, model.config, generation).save_pretrained(folder)
        return ExportedModel.from_pretrained(folder, device="cpu", **kind.running).runners


def _compared(runner: Any, name: str, given: Sequence[dict[str, Stage]], is_fixed: bool) -> Graph:
    stages_of = [each[name] for each in given if name in each and (not is_fixed or alike(each[name], given[0][name]))]
    with _explaining(name, "its runtime cannot run the graph"):
        apart = max(difference(runner, stage, name) for stage in stages_of)
    if not apart <= TOLERANCE:
        raise PrunusError(
            "graph",
            name,
            f"its runtime computes something else than the model: {apart:.1e} apart, more than {TOLERANCE}",
        )
    tried = any(not alike(stage, given[0][name]) for stage in stages_of)
    return Graph(name, apart, "any" if tried else "as traced", len(stages_of))


@contextlib.contextmanager
def _explaining(name: str, what: str) -> Iterator[None]:
    """What other libraries raise, as a refusal in their own words: the first line of the innermost reason."""
    try:
        yield
    except (PrunusError, MemoryError):
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        line = next(iter(str(cause).strip().splitlines()), "no reason given")
        raise PrunusError("model", name, f"{what}: {type(cause).__name__}: {line[:300]}") from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without what exporters print, log and warn of along the way: what counts is compared afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _empty(folder: Path) -> None:
    for inside in folder.iterdir():
        shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
