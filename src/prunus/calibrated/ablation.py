"""What channels that look at each other are worth: what their unit loses without each, one at a time.

A consumer is given nothing of queries and keys, so what it is given says little of a channel that both share with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunus.anatomy import Unit
from prunus.calibrated.consumers import Consumer
from prunus.calibrated.listening import Listener, listening
from prunus.errors import PrunusError
from prunus.structured import Gates
from prunus.unstructured import Stop, Visit, counted_positions, mask_of_text


def ablated(model: nn.Module, unit: Unit, consumers: Sequence[Consumer], gates: Gates, stop: Stop) -> Tensor:
    """‖W x − W x'‖² / ‖W x‖² of every channel, (channels,): x' is what the consumer is given without it.

    Every channel is a run of the block up to the consumer, so that as many sequences are looked at, the first ones, as make half a
    pass over the data, and one at least; all of a batch that cannot be taken apart.

    Raises:
        PrunusError: no batch used the layer.
    """
    (consumer,) = consumers
    W_RC, text_mask = consumer.weight(model), mask_of_text(model, unit.tower)
    opened, lost = torch.ones(unit.channels), torch.zeros(unit.channels, dtype=torch.float64)
    left, energy = max(1, sum(map(_sequences, stop.visits)) // (2 * unit.channels)), 0.0
    with listening(consumer.layer.owner) as listener:
        for visit in stop.visits:
            part, whole = _first_of(visit, left, listener.run(partial(stop.run, visit)), listener, stop)
            masks = [counted_positions(part, x, text_mask) for x in whole]
            spoken = sum(float((rows(x, mask) @ W_RC.T).square().sum()) for x, mask in zip(whole, masks, strict=True))
            if not spoken:  # not used, or for padding alone
                stop.rest(visit)
                continue
            for channel in range(unit.channels):
                gates.set({unit.name: opened.index_fill(0, torch.tensor([channel]), 0.0)})
                without = listener.run(partial(stop.run, part), len(whole))
                for x, less, mask in zip(whole, without, masks, strict=True):
                    lost[channel] += float(((rows(x, mask) - rows(less, mask)) @ W_RC.T).square().sum())
            gates.set({unit.name: opened})
            stop.rest(visit)
            energy, left = energy + spoken, left - _sequences(part)
            if left <= 0:
                break
    if not energy:
        raise PrunusError(
            "batches", consumer.matrix.name, "no calibration batch used this layer; give batches that do, or exclude it"
        )
    return (lost / energy).float()


def rows(x_NTC: Tensor, counted_T: Tensor | None) -> Tensor:
    """The tokens that are no padding, (T, C), fp32."""
    x_TC = x_NTC.reshape(-1, x_NTC.shape[-1]).float()
    return x_TC if counted_T is None else x_TC[counted_T]


def _first_of(
    visit: Visit, most: int, whole: list[Tensor], listener: Listener, stop: Stop
) -> tuple[Visit, list[Tensor]]:
    """The first sequences of a visit, and what the consumer is given of them; the whole visit where that is not what it was given before."""
    batch = _sequences(visit)
    if batch <= most or not whole:
        return visit, whole

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[:most] if value.ndim and len(value) == batch else value
        if isinstance(value, dict):
            return {name: cut(inner) for name, inner in value.items()}
        return tuple(map(cut, value)) if type(value) is tuple else value

    part = replace(
        visit, arguments=cut(visit.arguments), args=cut(visit.args), kwargs=cut(visit.kwargs), masks=cut(visit.masks)
    )
    try:
        found = listener.run(partial(stop.run, part), len(whole))
    except Exception:  # whatever a forward raises about sizes that do not fit
        return visit, whole
    is_part = len(found) == len(whole) and all(
        len(x) * batch == len(y) * most and torch.allclose(x.float(), y[: len(x)].float(), rtol=1e-2, atol=1e-2)
        for x, y in zip(found, whole, strict=True)
    )
    return (part, found) if is_part else (visit, whole)


def _sequences(visit: Visit) -> int:
    """How many a visit has, by its first tensor of three dimensions; 1 where none has."""
    given = (value for value in visit.arguments.values() if isinstance(value, Tensor) and value.ndim >= 3)
    return next((len(value) for value in given), 1)
