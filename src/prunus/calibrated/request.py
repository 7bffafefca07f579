"""What narrowing is asked for, found possible before anything is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from prunus.anatomy import Anatomy, Survey, Unit, anatomy, linears, survey
from prunus.batches import call_with_batch, calls_the_model, checked
from prunus.calibrated.consumers import Consumer, consumers_of
from prunus.calibrated.heads import with_heads
from prunus.calibrated.method import Calibrated
from prunus.calibrated.plain import Knob, knobs_for, loadable, within_reach
from prunus.calibrated.state import State
from prunus.calibrated.whole_experts import refuse_for_whole_experts
from prunus.errors import PrunusError
from prunus.fingerprint import refuse_other_models, taken
from prunus.losses import Loss, own_loss, refuse_no_function
from prunus.refusals import expect, refuse_unusable, refuse_weight
from prunus.structured import Example, Whole, searchable
from prunus.unstructured import Call, WalkOptions, sparsity_of


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
    state: State = field(default_factory=State)
    """Where the weights are, and what was found of them by work that was interrupted."""
    loss: Loss = own_loss
    """The training loss on a batch, for what asks for it."""

    @property
    def blocks(self) -> dict[str, list[Unit]]:
        """Block → its units."""
        found: dict[str, list[Unit]] = {}
        for unit in self.units:
            found.setdefault(unit.block, []).append(unit)
        return found


def settle(
    model: nn.Module, method: Calibrated, batches: Iterable[Any], call: Call | None, options: WalkOptions,
    example: Callable[[], object] | None, price: Callable[[Anatomy, nn.Module, Example], Whole] | None = Whole, loss: Loss = own_loss,
) -> Request:  # fmt: skip
    """What is narrowed and by how much, checked before anything is touched.

    Args:
        price: what the budget is held against; None leaves the budget alone.
        loss: the training loss on a batch; one of the caller's own runs the model, too, where no `call` does.
    """
    expect("method", method, Calibrated, "how to narrow, such as prunus.Calibrated(ratio=0.3)")
    if example is not None and not callable(example):
        raise PrunusError("example", type(example).__name__, "give what can be called: example=lambda: model(**batch)")
    refuse_no_function(loss)
    call = loss if call is None and loss is not own_loss else call
    inner = searchable(model)
    parts = anatomy(inner)
    parts, units, knobs = units_of(inner, parts, method)
    for unit in units:
        refuse_unusable(inner, unit.path)
        if not unit.sliced:
            for site, layer in linears(inner, unit):
                refuse_weight(f"{unit.path}.{site.linear}", layer.weight)
    consumers = consumers_of(inner, units, survey(inner, parts=parts))
    refuse_compensation(inner, method, consumers)
    refuse_other_models(inner)
    given = taken(checked(batches, calls_the_model(call)))
    run = example or partial(call or call_with_batch, inner, given[0])
    fitted = loadable(inner, method, knobs)
    if price is not None:
        fitted = within_reach(fitted, price(parts, inner, run), units, knobs)
    return Request(inner, fitted, parts, units, knobs, consumers, given, call, options, loss=loss)


def in_channels_of(parts: Anatomy, method: Calibrated) -> Anatomy:
    """The anatomy in the channels that a method means."""
    return with_heads(parts) if method.attention == "heads" else parts


def refuse_impossible(
    model: nn.Module,
    method: Calibrated,
    parts: Anatomy | None = None,
    found: Survey | None = None,
    shorter: bool = False,
) -> None:
    """Refuses a narrowing that can be seen to be impossible without data, of a model with weights or on the meta device.

    Args:
        parts: the model's anatomy, where it has been read already.
        found: and its matrices.
        shorter: whether blocks leave before, so that the budget is one of others.

    Raises:
        PrunusError: nothing to narrow, what no plain config says, a compensation that the model cannot have, or a budget out of reach.
    """
    inner = searchable(model)
    parts = anatomy(inner) if parts is None else parts
    meant, units, knobs = units_of(inner, parts, method)
    refuse_compensation(
        inner, method, consumers_of(inner, units, survey(inner, parts=parts) if found is None else found)
    )
    if not shorter and not method.counts_an_example:  # which is run once there are weights
        within_reach(loadable(inner, method, knobs), Whole(meant, inner), units, knobs)


def units_of(
    model: nn.Module, parts: Anatomy, method: Calibrated
) -> tuple[Anatomy, tuple[Unit, ...], list[Knob] | None]:
    """The anatomy in the channels that are meant, the units that are narrowed, and what a plain config says them by.

    Raises:
        PrunusError: a selector matches nothing, or a plain config cannot say it.
    """
    parts = in_channels_of(parts, method)
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
