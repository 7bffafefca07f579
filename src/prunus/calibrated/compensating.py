"""One unit of one block: what its consumers are given with and without the channels that go, and the fit that follows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from prunus.anatomy import Unit
from prunus.calibrated.consumers import Consumer
from prunus.calibrated.listening import listening
from prunus.calibrated.method import Calibrated
from prunus.calibrated.refit import Moments
from prunus.errors import PrunusError
from prunus.structured import Gates
from prunus.unstructured import Gram, Stop, Sum, Visit, counted_positions, gather, mask_of_text


def compensate(
    model: nn.Module, unit: Unit, consumers: Sequence[Consumer], kept: Tensor, gates: Gates, stop: Stop, method: Calibrated
) -> None:  # fmt: skip
    """Shuts the gates of the channels of a unit that go, and fits its consumers' biases, or their columns and biases, in place.

    Hidden neurons do not look at each other, so what is left of them stays what it was. Where channels do (queries and keys, norms
    over them), the block is run with and without those that go.

    Args:
        kept: bool (channels,), on the CPU, True where the channel stays.
    """
    shut = {unit.name: kept.float()}
    columns = [one.columns[kept].flatten().sort().values.to(one.layer.weight.device) for one in consumers]
    found: list[Moments | None]
    if unit.is_attention or unit.norms or unit.centred:
        found = [
            seen_twice(model, unit, consumer, stays, gates, shut, stop)
            for consumer, stays in zip(consumers, columns, strict=True)
        ]
    else:
        known = gather(model, [one.matrix for one in consumers], (Gram, Sum), stop)
        found = [
            Moments.of_columns(stays, known[one.matrix.name]) if one.matrix.name in known else None  # no token was routed to it
            for one, stays in zip(consumers, columns, strict=True)
        ]  # fmt: skip
    gates.set(shut)
    for consumer, moments in zip(consumers, found, strict=True):
        if moments is not None:
            with torch.autocast(moments.gram.device.type, enabled=False):
                fit(model, consumer, moments, method)


def fit(model: nn.Module, consumer: Consumer, found: Moments, method: Calibrated) -> None:
    """Writes the fitted columns and bias into the model."""
    W_RC, bias = consumer.weight(model), consumer.bias
    W_RK = W_RC[:, found.kept]
    if method.compensation == "refit":
        W_RK = found.fitted_columns(W_RC, method.damping, bias is not None)
        consumer.matrix.view(model)[:, found.kept] = W_RK.to(consumer.layer.weight.dtype)
    if bias is not None:
        bias += found.fitted_bias(W_RC, W_RK).to(bias.dtype)


def seen_twice(
    model: nn.Module, unit: Unit, consumer: Consumer, columns: Tensor, gates: Gates, shut: dict[str, Tensor], stop: Stop
) -> Moments:  # fmt: skip
    """What a consumer is given while the gates of its unit are open, and while they are shut."""
    found, opened = Moments.none(columns, consumer.matrix.columns), {unit.name: torch.ones_like(shut[unit.name])}
    with listening(consumer.layer.owner) as listener:
        for visit in stop.visits:
            before = listener.run(partial(stop.run, visit))
            gates.set(shut)
            after = listener.run(partial(stop.run, visit), len(before)) if before else []
            gates.set(opened)
            stop.rest(visit)
            for before_NTC, after_NTC in zip(before, after, strict=True):
                add_call(found, before_NTC, after_NTC, visit, mask_of_text(model, unit.tower), consumer.matrix.name)
    if not found.tokens:
        raise PrunusError(
            "batches", consumer.matrix.name, "no calibration batch used this layer; give batches that do, or exclude it"
        )
    return found


def add_call(found: Moments, before_NTC: Tensor, after_NTC: Tensor, visit: Visit, text_mask: str, name: str) -> None:
    """Counts the tokens of one call that are no padding.

    Raises:
        PrunusError: an input is not finite.
    """
    counted_T = counted_positions(visit, before_NTC, text_mask)
    before_TC, after_TC = (x.reshape(-1, x.shape[-1]) for x in (before_NTC, after_NTC))
    if counted_T is not None:
        before_TC, after_TC = before_TC[counted_T], after_TC[counted_T]
    if not bool(torch.isfinite(before_TC.float().sum() + after_TC.float().sum())):
        raise PrunusError(
            name, "nan or infinity", f"an input of this layer is not finite in calibration batch {visit.batch}; look at that batch, or walk in "
            "bf16 or fp32 instead of fp16",
        )  # fmt: skip
    found.add(before_TC, after_TC)
