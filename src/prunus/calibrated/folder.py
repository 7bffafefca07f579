"""Narrows a checkpoint that need not fit into memory: blocks are read from its files, scored, fitted, cut, and written.

Work goes on in a folder beside the output. Scores and fitted weights of every finished block are noted there, so a run that dies goes
on at the block it was in, and the source is never touched.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunus.anatomy import Anatomy, Unit, anatomy, linears, survey
from prunus.batches import call_with_batch, calls_the_model, checked
from prunus.calibrated.consumers import Consumer, consumers_of
from prunus.calibrated.folder_work import FolderWork
from prunus.calibrated.method import Calibrated
from prunus.calibrated.narrowing import calibration_of, decided, make_up, recorded_plan, scored
from prunus.calibrated.plain import loadable, make_plain
from prunus.calibrated.request import Request, refuse_compensation, units_of
from prunus.calibrated.scores import GradientTimesGate
from prunus.calibrated.state import Known, State
from prunus.checkpoint import (
    Hollow,
    Parts,
    Shards,
    describe,
    hashed,
    identity,
    plan_of,
    refuse_places,
    verify,
    without_weights,
)
from prunus.errors import PrunusError
from prunus.fingerprint import Fingerprint
from prunus.parallel import by_first
from prunus.plan import Plan, write_record
from prunus.refusals import expect
from prunus.storage import writable_path, write_text
from prunus.structured import Gates, Whole
from prunus.structured import narrow as cut_units
from prunus.undo import Undo
from prunus.unstructured import Call, WalkOptions, sparsity_of, walk_options


@by_first
@torch.no_grad()
def narrow_folder(
    source: str | Path, output: str | Path, method: Calibrated, batches: Iterable[Any], *, call: Call | None = None,
    options: WalkOptions | None = None, device: str | torch.device = "cpu",
) -> Plan:  # fmt: skip
    """As `narrow`, from a checkpoint folder into another, with one block's weights in memory at a time; the first of several
    processes does it alone.

    Args:
        source: a folder of `save_pretrained` (or a hub snapshot) with safetensors weights.
        output: a new folder. While the work lasts it is `OUTPUT.partial`; called again after an interruption with the same arguments, the
            work goes on where it was. A request that is refused leaves none behind.
        method: as for `narrow`. Budgets that are counted on a call of the whole model are refused.
        batches: as for `narrow`.
        call: runs a batch; by default `model(**batch)`.
        options: how to walk.
        device: where blocks are run, scored and fitted.

    Returns:
        The plan. The folder is that of the model that `narrow` gives.

    Raises:
        PrunusError: as `narrow`; or `output` exists, lies in the source, or cannot be written; its partial folder belongs to other work; weights
            are missing, damaged, changed since they were saved, or have been pruned.
    """
    expect("method", method, Calibrated, "how to narrow, such as prunus.Calibrated(ratio=0.3)")
    source, output, options = Path(source), writable_path(output), walk_options(options, None)
    refuse_places(source, output)
    verify(source)
    model, shards = without_weights(source)
    if sparsity_of(model) is not None:
        raise PrunusError(
            "source", str(source), "its weights were pruned; narrow first and prune afterwards, or load it and use narrow"
        )  # fmt: skip
    if method.score.whole_experts:
        raise PrunusError(
            "method.score", method.score.score, "whole experts leave a model that is in memory; load it, and use narrow"
        )  # fmt: skip
    if method.allocation is not None or isinstance(method.score, GradientTimesGate):
        raise PrunusError("method", method.method, "it asks for all of the model at once; load it, and use narrow")
    if method.counts_an_example:
        raise PrunusError(
            "method", method.method, "its budget is counted on a call of the whole model; take ratio, max_parameters or max_bytes"
        )  # fmt: skip
    device = torch.device(device)
    parts, units, knobs = units_of(model, anatomy(model), method)
    consumers = consumers_of(model, units, survey(model, parts=parts))
    refuse_compensation(model, method, consumers)
    fitted = loadable(model, method, knobs).fit(Whole(parts, model), units)
    fitted.check(units)
    given = list(checked(batches, calls_the_model(call)))
    if not given:
        raise PrunusError("batches", "none", "at least one calibration batch is needed")
    tensors = Parts(model, shards)
    changed = {unit.name: names_of(model, unit) for unit in units}
    dtypes = tensors.dtypes_to_write(name for names in changed.values() for name in names)
    asked = {
        "source": identity(shards), "method": method.model_dump(mode="json"),
        "options": options.model_dump(mode="json", exclude={"progress", "activations"}), "batches": _hashed(given),
    }  # fmt: skip
    work = FolderWork(output.with_name(output.name + ".partial"), hashed(asked))
    with work.taken():
        work.begin(shards)
        state = _FolderState(model, tensors, work, device, units, consumers, options.sequential)
        request = Request(
            model, fitted, parts, units, knobs, consumers, given, call or partial(call_with_batch, device=device), options, state
        )  # fmt: skip
        with work.unless_refused(), state.on_use:
            kept = _kept(request, work.known)
            plan = recorded_plan(request, method, kept, calibration_of(request))
            _write(state, parts, plan, changed, dtypes)
        with work.writing():
            _describe(work.folder, source, request, plan, kept)
            work.finished(output)
    return plan


def _kept(request: Request, known: Known) -> dict[str, Tensor]:
    """Which channels stay, once what is left makes up for what goes.

    Args:
        known: of earlier work.
    """
    gates = Gates(request.model, request.units)
    try:
        if known.worth.keys() != {unit.name for unit in request.units}:
            known = scored(request, gates)
        kept = decided(request, known.worth)
        make_up(request, gates, kept, known, _NothingToUndo())
    finally:
        gates.remove()
    return kept


class _NothingToUndo(Undo):
    """The source stays as it is."""

    def keep(self, tensor: Tensor) -> None:
        pass


def _hashed(batches: Iterable[Any]) -> str:
    data = Fingerprint(batches)
    for _ in data:
        pass
    return data.digest


def names_of(model: nn.Module, unit: Unit) -> list[str]:
    """The parameters of a unit that are cut or fitted, by their names in the model."""
    found: dict[int, nn.Parameter] = {}
    for path in (unit.path, *unit.twins, *unit.mirrors):
        for _, layer in linears(model, unit, path):
            found |= {id(parameter): parameter for parameter in layer.parameters.values()}
        for site in unit.norms:
            norm = model.get_submodule(f"{path}.{site.linear}")
            found |= {id(parameter): parameter for parameter in norm.parameters(recurse=False)}
    return [name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in found]


class _FolderState(Hollow, State):
    """Weights that live in the source's files, and fitted ones in files of finished blocks."""

    def __init__(
        self, model: PreTrainedModel, parts: Parts, work: FolderWork, device: torch.device, units: Sequence[Unit],
        consumers: Mapping[str, Sequence[Consumer]], sequential: bool,
    ):  # fmt: skip
        super().__init__(model, parts, device)
        self.work = work
        self._readers = {unit.name: (unit.block, [one.matrix.name for one in consumers[unit.name]]) for unit in units}
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._counts: dict[str, Shards] = {}
        """Fitted parameter → the file that holds it, once that is what counts."""
        if sequential:
            for block in work.blocks:
                self._count(block)

    @contextmanager
    def block(self, path: str) -> Iterator[None]:
        with super().block(path):
            yield
        if (
            path in self.work.blocks
        ):  # otherwise later blocks see what the dense one computes, also after an interruption
            self._count(path)

    def scores(self, block: str) -> Known | None:
        found, worth, means = Known(), self.work.known.worth, self.work.known.means
        for unit, (its_block, readers) in self._readers.items():
            if its_block == block and unit in worth:
                found.worth[unit] = worth[unit]
                found.means.update({name: means[name] for name in readers if name in means})
        return found if found.worth else None

    def scored(self, block: str, known: Known) -> None:
        self.work.note_scores(known)

    def is_fitted(self, block: str) -> bool:
        return block in self.work.blocks

    def fitted(self, block: str, parameters: Sequence[nn.Parameter]) -> None:
        if parameters:
            self.work.note_fit(block, {self._names[id(parameter)]: parameter.detach() for parameter in parameters})

    def count_all(self) -> None:
        """Lets all fitted weights count."""
        for block in self.work.blocks:
            self._count(block)

    def let_go(self, name: str) -> None:
        """Gives the memory of a parameter that was cut back."""
        owner, _, last = name.rpartition(".")
        module = self.model.get_submodule(owner)
        if not self.is_hollow(self.model.get_parameter(name)):
            module._parameters[last] = nn.Parameter(self.model.get_parameter(name).to("meta"), requires_grad=False)

    def _count(self, block: str) -> None:
        file = self.work.file(self.work.blocks[block])
        shards = Shards(file.parent, [file.name])
        self._counts |= dict.fromkeys(shards.places, shards)

    def _fill(self, parameter: nn.Parameter) -> None:
        name = self._names[id(parameter)]
        if name in self._counts:
            parameter.copy_(self._counts[name].read(name))
        else:
            super()._fill(parameter)


def _write(
    state: _FolderState, parts: Anatomy, plan: Plan, changed: Mapping[str, Sequence[str]], dtypes: Mapping[str, torch.dtype]
) -> None:  # fmt: skip
    """Writes the narrow weights: those of one block after the other, and copies of all others."""
    source, model, groups = state.parts.shards, state.model, state.parts.groups
    state.count_all()
    small, _ = without_weights(source.folder)
    cut_units(small, parts, plan)
    leaving = [unit for unit in parts if unit.name in plan.units and len(plan.units[unit.name].kept) < unit.channels]
    last = {groups[name]: unit.name for unit in leaving for name in changed[unit.name]}
    members = {group: [name for name, other in groups.items() if other is group] for group in last}
    sizes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for group, names in members.items():
        for key, tensor in group.save(small, {name: small.get_parameter(name).detach() for name in names}).items():
            sizes[key] = (dtypes.get(key, source.places[key].dtype), tuple(tensor.shape))
    with state.work.writing():
        target = source.lay_out(state.work.folder, sizes)
        for key in source.places:
            if key not in sizes:
                target.write({key: source.read(key)})
    for unit in leaving:
        cut_units(model, parts, plan.model_copy(update={"units": {unit.name: plan.units[unit.name]}}))
        for group in (group for group, name in last.items() if name == unit.name):
            found = group.save(model, {name: model.get_parameter(name).detach() for name in members[group]})
            with state.work.writing():
                target.write(found)
            for name in members[group]:
                state.let_go(name)
        state.on_use.release()


def _describe(folder: Path, source: Path, request: Request, plan: Plan, kept: Mapping[str, Tensor]) -> None:
    """Writes the config of the narrow model, and what explains the folder."""
    small, _ = without_weights(source)
    before = plan_of(small)
    cut_units(small, request.parts, plan)
    write_record(small, plan if before is None else plan.after(before))
    if request.knobs is not None:
        make_plain(small, request.knobs, kept)
    small.config.save_pretrained(folder)
    if request.knobs is None:
        describe(folder, small)
    for path in folder.glob("*.safetensors.index.json"):
        index = json.loads(path.read_text())
        files = {folder / file for file in index["weight_map"].values()}
        index["metadata"] = {**index.get("metadata", {}), "total_size": sum(file.stat().st_size for file in files)}
        write_text(path, json.dumps(index, indent=2) + "\n")
