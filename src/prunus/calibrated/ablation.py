"""What channels that look at each other are worth: what their unit loses without each, one at a time.

A consumer is given nothing of queries and keys, so what it is given says little of a channel that both share with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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


class Ablation:
    """‖W x − W x'‖² / ‖W x‖² of every channel of a unit: x' is what the consumer is given without it.

    Every channel is a run of the block up to the consumer, so that as many sequences are looked at, the first ones, as make half a
    pass over the data, and one at least; all of a batch that cannot be taken apart.
    """

    def __init__(self, model: nn.Module, unit: Unit, consumer: Consumer, gates: Gates, stop: Stop, listener: Listener):
        self.listener = listener
        """At the consumer."""
        self._unit, self._consumer, self._gates, self._stop = unit, consumer, gates, stop
        self._W_RC, self._text_mask = consumer.weight(model), mask_of_text(model, unit.tower)
        self._lost, self._energy = torch.zeros(unit.channels, dtype=torch.float64), 0.0
        self._left = max(1, sum(map(_sequences, stop.visits)) // (2 * unit.channels))

    def look(self, visit: Visit, whole: list[Tensor]) -> None:
        """Runs the block for the first sequences of a visit without each channel, unless enough have been looked at.

        Args:
            whole: what the consumer was given with all channels.
        """
        if self._left <= 0:
            return
        part, whole = _first_of(visit, self._left, whole, self.listener, self._stop)
        masks = [counted_positions(part, x, self._text_mask) for x in whole]
        spoken = sum(float((rows(x, mask) @ self._W_RC.T).square().sum()) for x, mask in zip(whole, masks, strict=True))
        if not spoken:  # not used, or for padding alone
            return
        opened = torch.ones(self._unit.channels)
        for channel in range(self._unit.channels):
            self._gates.set({self._unit.name: opened.index_fill(0, torch.tensor([channel]), 0.0)})
            without = self.listener.run(partial(self._stop.run, part), len(whole))
            for x, less, mask in zip(whole, without, masks, strict=True):
                self._lost[channel] += float(((rows(x, mask) - rows(less, mask)) @ self._W_RC.T).square().sum())
        self._gates.set({self._unit.name: opened})
        self._energy, self._left = self._energy + spoken, self._left - _sequences(part)

    @property
    def worth(self) -> Tensor:
        """What was found, (channels,).

        Raises:
            PrunusError: no batch used the layer.
        """
        if not self._energy:
            raise PrunusError(
                "batches", self._consumer.matrix.name, "no calibration batch used this layer; give batches that do, or exclude it"
            )  # fmt: skip
        return (self._lost / self._energy).float()


class Ablations:
    """Those of all units of a block that need them, made beside the run of the block that others listen to."""

    def __init__(self, each: Mapping[str, Ablation]):
        self._each = each
        self.calls = Counter[int]()
        """Batch → how often consumers were called in the run of the block, those that others listen to included."""

    def hear(self, visit: Visit) -> None:
        """A consumer that others listen to was called."""
        self.calls[visit.batch] += 1

    def look(self, visit: Visit) -> None:
        """Once the block has been run for a visit."""
        given = [one.listener.taken() for one in self._each.values()]
        self.calls[visit.batch] += sum(map(len, given))
        for one, whole in zip(self._each.values(), given, strict=True):
            one.look(visit, whole)
        for one in self._each.values():
            one.listener.taken()  # in runs of the others

    @property
    def worth(self) -> dict[str, Tensor]:
        """Unit → what its channels are worth, (channels,)."""
        return {name: one.worth for name, one in self._each.items()}


@contextmanager
def ablating(
    model: nn.Module, units: Sequence[Unit], consumers: Mapping[str, Sequence[Consumer]], gates: Gates, stop: Stop
) -> Iterator[Ablations]:
    """While the context is open, what the consumers of some units of a block are given is heard."""
    each: dict[str, Ablation] = {}
    with ExitStack() as around:
        for unit in units:
            (consumer,) = consumers[unit.name]
            listener = around.enter_context(listening(consumer.layer.owner))
            each[unit.name] = Ablation(model, unit, consumer, gates, stop, listener)
        yield Ablations(each)


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
