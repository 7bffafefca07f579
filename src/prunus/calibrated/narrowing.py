"""Narrows a model without training: scores the channels of all units, decides, and goes through the blocks once more to make up for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from prunus.anatomy import Matrix, Unit
from prunus.batches import bf16_autocast, input_device, runs_in_bf16
from prunus.calibrated.ablation import ablating
from prunus.calibrated.allotting import allotted
from prunus.calibrated.channel_scores import ChannelScores
from prunus.calibrated.compensating import Leaving, biases, refit, take_means, weights_and_biases
from prunus.calibrated.given import masks_of
from prunus.calibrated.gradients import by_gradient
from prunus.calibrated.method import Calibrated
from prunus.calibrated.plain import make_plain, same_count
from prunus.calibrated.request import Request, settle
from prunus.calibrated.scores import GradientTimesGate, Seen
from prunus.calibrated.state import Known
from prunus.calibrated.whole_experts import worth_of_experts
from prunus.checkpoint import extract
from prunus.errors import PrunusError
from prunus.fingerprint import Fingerprint
from prunus.losses import Loss, own_loss
from prunus.parallel import agreeing, is_first, of_first
from prunus.plan import Entry, Plan
from prunus.refusals import expect
from prunus.structured import Gates, Whole, pruned_share, reinstate
from prunus.undo import Undo, structure_kept
from prunus.unstructured import Call, Spill, Statistics, Stop, Sum, Walk, WalkOptions, gather, walk_options

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
@agreeing()
def narrow(
    model: Model, method: Calibrated, batches: Iterable[Any], *, call: Call | None = None, options: WalkOptions | None = None,
    example: Callable[[], object] | None = None, scores: ChannelScores | None = None, plan: Plan | None = None, inplace: bool = False, loss: Loss = own_loss,
) -> tuple[Model, Plan]:  # fmt: skip
    """Makes a model physically smaller from calibration data alone.

    One walk scores the channels of all units in the dense model. The method decides which of them stay. For a refit (`compensation`), a
    second walk, block by block, lets what is left make up for what goes, each block seeing what the narrowed ones before it compute. Of
    several processes each does all of it, and the first decides.

    Args:
        model: any model that `anatomy` knows.
        method: how much goes, by what score, and how it is made up for.
        batches: calibration data, whatever `call` accepts; all of it is on its way at once, and is gone through twice for a refit.
        call: runs a batch; by default `model(**batch)`.
        options: how to walk. Not `sequential`: in a refit, blocks see what the dense ones before them compute, in a pass less.
        example: one call of the model, for a budget that is counted on one; by default, that with the first batch.
        scores: what `score_channels` found earlier; the data are gone through once.
        plan: which channels stay, such as `scores.plan(…)` gave; of the method, only how that is made up for counts.
        inplace: narrow `model` itself. Otherwise it is as it was before.
        loss: the training loss on a batch, for scores and allocations that ask for it; by default the model's own. Another one runs the
            batches, too, unless `call` does.

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
    request = settle(model, method, batches, call, walk_options(options, None), example, price, loss)
    if scores is not None:
        scores.check(method, request.units, request.model)
    kept = None if plan is None else masks_of(plan, request.parts, request.units, request.knobs)
    gates = Gates(request.model, [unit for unit in request.units if not unit.sliced])
    with Undo() as undo:
        try:
            known = Known() if scores is None else Known(scores.of(request.units))
            if kept is None:
                request = with_shares(request)
                known = scored(request, gates) if scores is None else known
                kept = of_first(decided(request, known.worth))  # devices may round otherwise
            make_up(request, gates, kept, known, undo)
        finally:
            gates.remove()
        plan = recorded_plan(request, method, kept, calibration_of(request), () if plan is None else plan.history)
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


@contextmanager
def walking(request: Request, title: str, sequential: bool = False) -> Iterator[Iterator[Stop]]:
    """While the context is open, the stops at the blocks of the units, in execution order.

    Raises:
        PrunusError: a block that no batch reached.
    """
    blocks, options = list(request.blocks), request.options
    bar = Progress(
        TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        transient=True, disable=not (options.progress and is_first()),
    )  # fmt: skip
    with ExitStack() as around:
        around.enter_context(bar)
        around.enter_context(bf16_autocast(request.model, options.bf16))
        spill = Spill(request.model, options.activations)
        walk = around.enter_context(
            Walk(request.model, request.batches, blocks, request.call, request.state, spill, sequential)
        )
        yield iter(bar.track(walk, total=len(blocks), description=title))
        if walk.pending:
            raise PrunusError(
                "batches", next(iter(walk.pending)), "no calibration batch reached this block; give batches that use it, or exclude it"
            )  # fmt: skip


def scored(request: Request, gates: Gates) -> Known:
    """What the channels of the units are worth in the model as it is, and the means that a compensation asks for."""
    score, found = request.method.score, Known()
    if score.whole_experts:
        return Known(weighed(request))
    if isinstance(score, GradientTimesGate):
        if request.call is not None and request.loss is own_loss:
            raise PrunusError(
                "score",
                score.score,
                "it is of the model's own loss on each batch; leave call out, or give the loss: loss=function(model, batch)",
            )
        return Known(
            by_gradient(request.model, request.units, score, request.batches, request.loss, request.options.bf16)
        )
    if not score.needs:
        for unit in request.units:
            with request.state.block(unit.block):
                found.worth[unit.name] = score_of(request, unit, {})
        return found
    with walking(request, f"{score.score} · blocks") as stops:
        for stop in stops:
            known = request.state.scores(stop.block)
            if known is None:
                with in_fp32(request.model):
                    known = scored_at(request, gates, stop)
                request.state.scored(stop.block, known)
            found.add(known)
    return found


def scored_at(request: Request, gates: Gates, stop: Stop) -> Known:
    """The same of one block, which is run once, and in part without each of the channels that look at each other."""
    model, units, takes_means = request.model, request.blocks[stop.block], request.method.compensation == "bias"
    mixed = [unit for unit in units if unit.layout.mixes]
    needs = tuple(dict.fromkeys((*request.method.score.needs, *(Sum,) * takes_means)))
    with ablating(model, mixed, request.consumers, gates, stop) as ablations:
        targets = consumers_among(request, units if takes_means else [unit for unit in units if unit not in mixed])
        known = gather(model, targets, needs, stop, ablations.look, ablations.hear)
    worth = ablations.worth | {unit.name: score_of(request, unit, known) for unit in units if unit not in mixed}
    calls: dict[str, Mapping[int, int]] = (
        {} if any(matrix.is_expert for matrix in targets) else {stop.block: ablations.calls}
    )
    return Known({unit.name: worth[unit.name] for unit in units}, means_of(known) if takes_means else {}, calls)


def dense_means(request: Request) -> dict[str, Tensor]:
    """Matrix that reads channels → the mean of what it is given in the dense model, by a walk of its own."""
    found: dict[str, Tensor] = {}
    with walking(request, "means · blocks") as stops:
        for stop in stops:
            targets = consumers_among(request, request.blocks[stop.block])
            with in_fp32(request.model):
                found |= means_of(gather(request.model, targets, (Sum,), stop))
    return found


def consumers_among(request: Request, units: Iterable[Unit]) -> list[Matrix]:
    """The matrices that read the channels of some units."""
    return [one.matrix for unit in units for one in request.consumers[unit.name]]


def means_of(known: Mapping[str, Statistics]) -> dict[str, Tensor]:
    """Matrix → the mean of what it was given, (columns,)."""
    return {name: inputs[Sum].total / inputs.tokens for name, inputs in known.items()}


def weighed(request: Request) -> dict[str, Tensor]:
    """Set of experts → what each of them is worth, (experts,)."""
    worth: dict[str, Tensor] = {}
    with walking(request, f"{request.method.score.score} · blocks") as stops:
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


def make_up(request: Request, gates: Gates, kept: Mapping[str, Tensor], known: Known, undo: Undo) -> None:
    """Lets what is left make up for what goes, as the method says."""
    compensation = request.method.compensation
    leaving = {
        unit.name: Leaving(unit, request.consumers[unit.name], kept[unit.name])
        for unit in request.units
        if compensation != "none" and not bool(kept[unit.name].all())
    }
    if compensation == "bias":
        put_into_biases(request, leaving, known.means or dense_means(request), undo)
    elif compensation == "refit":
        refit_all(request, gates, leaving, known.calls, undo)


def put_into_biases(request: Request, leaving: Mapping[str, Leaving], means: Mapping[str, Tensor], undo: Undo) -> None:
    """Lets the consumers' biases take the means of what goes."""
    for block, units in request.blocks.items():
        due = [leaving[unit.name] for unit in units if unit.name in leaving and not leaving[unit.name].is_shared]
        if due and not request.state.is_fitted(block):
            with request.state.block(block):
                written = kept_for_undo(biases(due), undo)
                take_means(request.model, due, means)
                request.state.fitted(block, written)


def refit_all(
    request: Request, gates: Gates, leaving: Mapping[str, Leaving], calls: Mapping[str, Mapping[int, int]], undo: Undo
) -> None:
    """Shuts the gates of channels that go, block by block, and fits what is left."""
    model, method, options = request.model, request.method, request.options
    with walking(request, f"{method.compensation} · blocks", options.sequential) as stops:
        for stop in stops:
            going = [leaving[unit.name] for unit in request.blocks[stop.block] if unit.name in leaving]
            for one in going:
                if one.is_shared and options.sequential:
                    gates.set(one.shut)
            due = [one for one in going if not one.is_shared]
            if request.state.is_fitted(stop.block):
                for visit in stop.visits if stop.keeps_outputs else ():
                    stop.run(visit)  # as it was before
                gates.set({name: gate for one in due for name, gate in one.shut.items()})
                continue
            written = kept_for_undo(weights_and_biases(due), undo)
            with in_fp32(model):
                refit(model, due, gates, stop, method.damping, calls.get(stop.block, {}))
            request.state.fitted(stop.block, written)


def kept_for_undo(parameters: Sequence[nn.Parameter], undo: Undo) -> Sequence[nn.Parameter]:
    """The parameters, which are about to be written into."""
    for parameter in parameters:
        undo.keep(parameter)
    return parameters


def with_shares(request: Request) -> Request:
    """The request with the share of each unit that goes, where an allocation says it."""
    method, options = request.method, request.options
    shared = allotted(
        request.model,
        request.parts,
        request.units,
        method,
        request.batches,
        request.loss,
        options.bf16,
        options.progress,
    )
    return replace(request, method=shared)


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


def calibration_of(request: Request) -> dict[str, Any]:
    """A record of the data."""
    data = Fingerprint(request.batches)
    for _ in data:
        pass
    return data.summary(sequential=request.options.sequential, bf16=runs_in_bf16(request.model, request.options.bf16))


def recorded_plan(
    request: Request, method: Calibrated, kept: dict[str, Tensor], calibration: dict[str, Any], earlier: tuple[Entry, ...] = ()
) -> Plan:  # fmt: skip
    """The plan, with a record of what decided and on which data."""
    ratio = pruned_share(kept, request.method.unit_costs(request.units))
    entry = Entry.of("narrow", method, achieved=ratio, calibration=calibration)
    return Plan.from_masks(request.parts, kept, ratio=ratio).model_copy(update={"history": (*earlier, entry)})
