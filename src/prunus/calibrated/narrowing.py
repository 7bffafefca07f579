"""Narrows a model without training: scores the channels of all units, decides, and goes through the blocks once more to make up for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from prunus.anatomy import Anatomy, Unit, anatomy, survey
from prunus.batches import call_with_batch, calls_the_model, checked, input_device
from prunus.calibrated.ablation import ablated
from prunus.calibrated.channel_scores import ChannelScores
from prunus.calibrated.compensating import Leaving, compensate
from prunus.calibrated.consumers import Consumer, consumers_of
from prunus.calibrated.given import masks_of
from prunus.calibrated.heads import with_heads
from prunus.calibrated.method import Calibrated
from prunus.calibrated.plain import Knob, knobs_for, loadable, make_plain, same_count
from prunus.calibrated.scores import Seen
from prunus.calibrated.whole_experts import refuse_for_whole_experts, worth_of_experts
from prunus.checkpoint import extract
from prunus.errors import PrunusError
from prunus.fingerprint import Fingerprint
from prunus.plan import Entry, Plan
from prunus.refusals import expect, refuse_unusable
from prunus.structured import Example, Gates, Whole, pruned_share, reinstate, searchable
from prunus.undo import Undo, structure_kept
from prunus.unstructured import Call, Spill, Statistics, Stop, Walk, WalkOptions, gather, sparsity_of, walk_options

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Request:
    """A narrowing that was asked for and found possible."""

    model: nn.Module
    method: Calibrated
    """With the ratio that its budget comes to."""
    parts: Anatomy
    units: tuple[Unit, ...]
    """Those that are narrowed."""
    knobs: Sequence[Knob] | None
    """What a plain config says the result by; None where it need not."""
    consumers: Mapping[str, Sequence[Consumer]]
    """Unit → the matrices that read its channels."""
    batches: Sequence[Any]
    call: Call | None
    options: WalkOptions

    @property
    def blocks(self) -> dict[str, list[Unit]]:
        """Block → its units."""
        found: dict[str, list[Unit]] = {}
        for unit in self.units:
            found.setdefault(unit.block, []).append(unit)
        return found


@torch.no_grad()
def narrow(
    model: Model, method: Calibrated, batches: Iterable[Any], *, call: Call | None = None, options: WalkOptions | None = None,
    example: Callable[[], object] | None = None, scores: ChannelScores | None = None, plan: Plan | None = None, inplace: bool = False,
) -> tuple[Model, Plan]:  # fmt: skip
    """Makes a model physically smaller from calibration data alone.

    One walk scores the channels of all units in the dense model. The method decides which of them stay. A second walk, block by block,
    lets what is left make up for what goes (`compensation`), each block seeing what the narrowed ones before it compute.

    Args:
        model: any model that `anatomy` knows.
        method: how much goes, by what score, and how it is made up for.
        batches: calibration data, whatever `call` accepts; all of it is on its way at once, and is gone through twice.
        call: runs a batch; by default `model(**batch)`.
        options: how to walk. Not `sequential`: blocks see what the dense ones before them compute, in a pass less.
        example: one call of the model, for a budget that is counted on one; by default, that with the first batch.
        scores: what `score_channels` found earlier; the data are gone through once.
        plan: which channels stay, such as `scores.plan(…)` gave; of the method, only how that is made up for counts.
        inplace: narrow `model` itself. Otherwise it is as it was before.

    Returns:
        The narrowed model, which is what `extract` gives, and its plan. Weights that several layers share are narrowed without a fit.
        Whatever exception leaves this function, the model is as it was before.

    Raises:
        PrunusError: nothing to narrow, a budget out of reach, weights that are absent, quantised, or pruned already so that a refit would
            fill their zeros, batches that the model cannot take, a layer that no batch reached, or an input that is not finite.
    """
    if plan is not None:
        expect("plan", plan, Plan, "a Plan, as plan_channels makes it; of a file: Plan.load(path)")
    expect("scores", scores, ChannelScores | None, "what score_channels gave, or ChannelScores.load(path)")
    price = None if plan is not None else Whole if scores is None else scores.whole
    request = settle(model, method, batches, call, walk_options(options, None), example, price)
    if scores is not None:
        scores.check(method, request.units, request.model)
    kept = None if plan is None else masks_of(plan, request.parts, request.units, request.knobs)
    gates = Gates(request.model, [unit for unit in request.units if not unit.sliced])
    data = Fingerprint(request.batches)
    with Undo() as undo:
        try:
            if kept is None:
                kept = decided(request, scored(request, gates, data) if scores is None else scores.of(request.units))
            if method.compensation != "none":
                make_up(request, gates, kept, undo, data)
        finally:
            gates.remove()
        calibration = data.summary(sequential=request.options.sequential, bf16=request.options.bf16)
        plan = plan_of(request, method, kept, calibration, () if plan is None else plan.history)
        small = finished(model, request, plan, kept, inplace)
        if not inplace:
            undo.restore()
    return small, plan


def finished(model: Model, request: Request, plan: Plan, kept: dict[str, Tensor], inplace: bool) -> Model:
    """The model without the channels that go; whatever exception leaves this function, `model` is made of what it was made of before."""
    try:
        with structure_kept(model):
            small = extract(model, plan, inplace, request.parts)
            if request.knobs is not None:
                make_plain(small, request.knobs, kept)
    except BaseException:
        reinstate(model.parameters())
        raise
    return small


def settle(
    model: nn.Module, method: Calibrated, batches: Iterable[Any], call: Call | None, options: WalkOptions,
    example: Callable[[], object] | None, price: Callable[[Anatomy, nn.Module, Example], Whole] | None = Whole,
) -> Request:  # fmt: skip
    """What is narrowed and by how much, checked before anything is touched.

    Args:
        price: what the budget is held against; None leaves the budget alone.
    """
    expect("method", method, Calibrated, "how to narrow, such as prunus.Calibrated(ratio=0.3)")
    if example is not None and not callable(example):
        raise PrunusError("example", type(example).__name__, "give what can be called: example=lambda: model(**batch)")
    inner = searchable(model)
    parts = anatomy(inner)
    parts, units, knobs = units_of(inner, parts, method)
    for unit in units:
        refuse_unusable(inner, unit.path)
    consumers = consumers_of(inner, units, survey(inner, parts=parts))
    refuse_compensation(inner, method, consumers)
    given = list(checked(batches, calls_the_model(call)))
    if not given:
        raise PrunusError("batches", "none", "at least one calibration batch is needed")
    run = example or partial(call or call_with_batch, inner, given[0])
    fitted = loadable(inner, method, knobs)
    if price is not None:
        fitted = fitted.fit(price(parts, inner, run), units)
        fitted.check(units)
    return Request(inner, fitted, parts, units, knobs, consumers, given, call, options)


def units_of(
    model: nn.Module, parts: Anatomy, method: Calibrated
) -> tuple[Anatomy, tuple[Unit, ...], list[Knob] | None]:
    """The anatomy in the channels that are meant, the units that are narrowed, and what a plain config says them by.

    Raises:
        PrunusError: a selector matches nothing, or a plain config cannot say it.
    """
    if method.attention == "heads":
        parts = with_heads(parts)
    is_whole = method.score.whole_experts
    units = (parts.select_sets if is_whole else parts.select)(method.include, method.exclude)
    if not method.plain:
        return parts, units, None
    knobs = knobs_for(model, parts.sets if is_whole else parts, units, named="*" not in method.include)
    turned = {unit.name for knob in knobs for unit in knob.units}
    return parts, tuple(unit for unit in units if unit.name in turned), knobs


def refuse_compensation(model: nn.Module, method: Calibrated, consumers: Mapping[str, Sequence[Consumer]]) -> None:
    """Refuses a compensation that a model cannot have.

    Raises:
        PrunusError: a consumer has no bias to put it into, or zeros that would be filled.
    """
    record = sparsity_of(model)
    if method.score.whole_experts:
        refuse_for_whole_experts(method, record is not None)
    for unit, matrices in consumers.items():
        for one in matrices:
            name = one.matrix.name
            if method.compensation == "bias" and one.bias is None:
                raise PrunusError(
                    "compensation", "bias", f"{name} has no bias that could take it; take refit, or exclude {unit}"
                )
            if method.compensation == "refit" and record is not None and name in record.matrices:
                raise PrunusError(
                    "compensation", "refit", f"it would fill the zeros of {name}, which was pruned; take bias or none, or narrow first and "
                    "prune afterwards",
                )  # fmt: skip


@contextmanager
def walking(request: Request, data: Fingerprint, title: str, sequential: bool) -> Iterator[Iterator[Stop]]:
    """While the context is open, the stops at the blocks of the units, in execution order.

    Raises:
        PrunusError: a block that no batch reached.
    """
    blocks, options = list(request.blocks), request.options
    bar = Progress(
        TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        transient=True, disable=not options.progress,
    )  # fmt: skip
    device = input_device(request.model).type
    with ExitStack() as around:
        around.enter_context(bar)
        around.enter_context(torch.autocast(device, torch.bfloat16, enabled=options.bf16, cache_enabled=False))
        spill = Spill(request.model, options.activations)
        walk = around.enter_context(Walk(request.model, data, blocks, request.call, spill=spill, sequential=sequential))
        yield iter(bar.track(walk, total=len(blocks), description=title))
        if walk.pending:
            raise PrunusError(
                "batches", next(iter(walk.pending)), "no calibration batch reached this block; give batches that use it, or exclude it"
            )  # fmt: skip


def scored(request: Request, gates: Gates, data: Fingerprint) -> dict[str, Tensor]:
    """Unit → what its channels are worth in the model as it is, (channels,)."""
    score = request.method.score
    if score.whole_experts:
        return weighed(request, data)
    if not score.needs:
        return {unit.name: score_of(request, unit, {}) for unit in request.units}
    worth: dict[str, Tensor] = {}
    with walking(request, data, f"{score.score} · blocks", sequential=False) as stops:
        for stop in stops:
            units = request.blocks[stop.block]
            alone = [unit for unit in units if not unit.layout.mixes]
            targets = [one.matrix for unit in alone for one in request.consumers[unit.name]]
            with in_fp32(request.model):
                known = gather(request.model, targets, score.needs, stop) if alone else {}
                worth |= {unit.name: score_of(request, unit, known) for unit in alone}
                for unit in units:
                    if unit.layout.mixes:
                        worth[unit.name] = ablated(request.model, unit, request.consumers[unit.name], gates, stop)
    return worth


def weighed(request: Request, data: Fingerprint) -> dict[str, Tensor]:
    """Set of experts → what each of them is worth, (experts,)."""
    worth: dict[str, Tensor] = {}
    with walking(request, data, f"{request.method.score.score} · blocks", sequential=False) as stops:
        for stop in stops:
            for unit in request.blocks[stop.block]:
                worth[unit.name] = worth_of_experts(request.model, unit, stop)
    return worth


def score_of(request: Request, unit: Unit, known: Mapping[str, Statistics]) -> Tensor:
    """What a score says of a unit.

    Args:
        known: matrix → statistics of its inputs; experts that no token was routed to have none.

    Raises:
        PrunusError: it is no finite number for each channel.
    """
    model, score, nothing = request.model, request.method.score, Statistics((), 0, 0)
    seen = [
        Seen(one.weight(model), one.columns.to(one.layer.weight.device), known.get(one.matrix.name, nothing))
        for one in request.consumers[unit.name]
        if not score.needs or one.matrix.name in known
    ]
    if not seen:
        raise PrunusError(
            "batches", unit.name, "no calibration token was routed to its experts; give more, or exclude it"
        )
    with in_fp32(model):
        worth = score.of(model, unit, seen)
    if not isinstance(worth, Tensor) or worth.shape != (unit.channels,) or not bool(torch.isfinite(worth).all()):
        raise PrunusError(
            "score", score.score, f"of {unit.name} it must give a finite number for each of {unit.channels} channels"
        )
    return worth


def make_up(request: Request, gates: Gates, kept: dict[str, Tensor], undo: Undo, data: Fingerprint) -> None:
    """Shuts the gates of channels that go, block by block, and fits what is left."""
    model, method, options = request.model, request.method, request.options
    leaving = {
        unit.name: Leaving(unit, request.consumers[unit.name], kept[unit.name])
        for unit in request.units
        if not bool(kept[unit.name].all())
    }
    # columns that others use, too, cannot be fitted to one of them
    fitted = {name for name, one in leaving.items() if not any(matrix.is_shared for matrix in one.consumers)}
    with walking(request, data, f"{method.compensation} · blocks", options.sequential) as stops:
        for stop in stops:
            going = [leaving[unit.name] for unit in request.blocks[stop.block] if unit.name in leaving]
            for one in going:
                if one.unit.name not in fitted and options.sequential:
                    gates.set(one.shut)
            due = [one for one in going if one.unit.name in fitted]
            for parameter in {id(p): p for one in due for p in one.written}.values():
                undo.keep(parameter)
            with in_fp32(model):
                compensate(model, due, gates, stop, method)


def in_fp32(model: nn.Module) -> torch.autocast:
    """For what is computed of inputs and outputs while blocks run under autocast, which is theirs alone."""
    return torch.autocast(input_device(model).type, enabled=False)


def decided(request: Request, worth: dict[str, Tensor]) -> dict[str, Tensor]:
    """Which channels stay: unit → bool (channels,), on the CPU."""
    method = request.method
    if request.knobs is None:
        return {name: mask.cpu() for name, mask in method.choose(worth, request.units).items()}
    free = method.model_copy(update={"align": 1})  # what is rounded is their common number
    kept = {name: mask.cpu() for name, mask in free.choose(worth, request.units).items()}
    costs = method.unit_costs(request.units)
    return same_count(
        kept, worth, request.knobs, costs, method.align, method.for_units(request.units).min_channels, method.is_limit
    )


def plan_of(
    request: Request, method: Calibrated, kept: dict[str, Tensor], calibration: dict[str, Any], earlier: tuple[Entry, ...] = ()
) -> Plan:  # fmt: skip
    """The plan, with a record of what decided and on which data."""
    ratio = pruned_share(kept, request.method.unit_costs(request.units))
    entry = Entry.of("narrow", method, achieved=ratio, calibration=calibration)
    return Plan.from_masks(request.parts, kept, ratio=ratio).model_copy(update={"history": (*earlier, entry)})
