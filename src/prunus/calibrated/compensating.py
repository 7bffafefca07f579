"""The units of one block, and how the consumers of channels that go make up for them.

A refit looks at what consumers are given with and without those channels; a bias takes what these gave on average in the dense model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from prunus.anatomy import Unit
from prunus.calibrated.consumers import Consumer
from prunus.calibrated.listening import Countdown, Listener, listening
from prunus.calibrated.refit import Moments
from prunus.errors import PrunusError
from prunus.structured import Gates
from prunus.unstructured import Gram, Statistics, Stop, Sum, Visit, counted_positions, gather, mask_of_text


@dataclass(frozen=True)
class Leaving:
    """A unit of which channels go."""

    unit: Unit
    consumers: Sequence[Consumer]
    kept: Tensor
    """bool (channels,), on the CPU, True where the channel stays."""

    @property
    def shut(self) -> dict[str, Tensor]:
        """Its gates once they have gone."""
        return {self.unit.name: self.kept.float()}

    @property
    def opened(self) -> dict[str, Tensor]:
        """Its gates before."""
        return {self.unit.name: torch.ones(self.unit.channels)}

    @property
    def stands_alone(self) -> bool:
        """Whether what stays of its hidden channels is what it was."""
        return not (self.unit.layout.mixes or self.unit.norms or self.unit.centred)

    @property
    def is_shared(self) -> bool:
        """Whether columns that read it read others, too, so that they cannot be fitted to one of them."""
        return any(consumer.is_shared for consumer in self.consumers)

    def columns(self, consumer: Consumer, stay: bool = True) -> Tensor:
        """The columns of a consumer that stay, or those that go, sorted, on its device."""
        chosen = self.kept if stay else ~self.kept
        return consumer.columns[chosen].flatten().sort().values.to(consumer.layer.weight.device)


def weights_and_biases(leaving: Iterable[Leaving]) -> list[nn.Parameter]:
    """The parameters that a refit writes into."""
    layers = [one.layer for consumer in _consumers(leaving) for one in (consumer, *consumer.followers)]
    return list({id(p): p for layer in layers for p in layer.parameters.values()}.values())


def biases(leaving: Iterable[Leaving]) -> list[nn.Parameter]:
    """The parameters that take means."""
    layers = [one.layer for consumer in _consumers(leaving) for one in (consumer, *consumer.followers)]
    return list({id(layer.bias): layer.bias for layer in layers if layer.bias is not None}.values())


def _consumers(leaving: Iterable[Leaving]) -> list[Consumer]:
    return [consumer for one in leaving for consumer in one.consumers]


def take_means(model: nn.Module, leaving: Iterable[Leaving], means: Mapping[str, Tensor]) -> None:
    """Adds to the consumers' biases what the channels that go gave on average (FLAP, An et al., AAAI 2024), in place.

    Args:
        means: matrix → mean of what it is given, (C,); experts that no token was routed to have none.
    """
    for one in leaving:
        for consumer in one.consumers:
            if consumer.matrix.name in means:
                gone, W_RC = one.columns(consumer, stay=False), consumer.weight(model)
                _add_to_bias(consumer, W_RC[:, gone] @ means[consumer.matrix.name].to(W_RC.device)[gone])


def refit(
    model: nn.Module, leaving: Sequence[Leaving], gates: Gates, stop: Stop, damping: float, calls: Mapping[int, int]
) -> None:
    """Shuts the gates of channels of one block that go, and fits their consumers' columns and biases, in place.

    Hidden neurons do not look at each other, so what is left of them stays what it was, and one run of the block says all of them. Where
    channels do (queries and keys, norms over them), the block is run with and without those that go. Those neurons are seen in the
    run in which the last of these are there for the last time.

    Args:
        leaving: in the order of execution.
        calls: batch → how often consumers are called in a run of the block, where that is known. Nothing after the last is computed then,
            unless the run's output is what goes on.
    """
    calls = {} if stop.keeps_outputs else calls
    alone, mixed = ([one for one in leaving if one.stands_alone is so] for so in (True, False))
    targets = [consumer.matrix for consumer in _consumers(alone)]
    known: dict[str, Statistics] = {}
    for one in mixed:
        heard = targets if one is mixed[-1] else []
        (consumer,) = one.consumers
        found = Moments.none(one.columns(consumer), consumer.matrix.columns)
        with listening(consumer.layer.owner) as listener:
            again = partial(_seen_without, model, one, found, listener, gates, stop)
            known = gather(model, heard, (Gram, Sum), stop, again, Countdown(calls, listener).hear)
        if not found.tokens:
            raise PrunusError(
                "batches", consumer.matrix.name, "no calibration batch used this layer; give batches that do, or exclude it"
            )  # fmt: skip
        gates.set(one.shut)
        fit(model, consumer, found, damping)
    if alone and not mixed:
        known = gather(model, targets, (Gram, Sum), stop, hear=Countdown(calls).hear)
    for one in alone:
        gates.set(one.shut)
        for consumer in one.consumers:
            if consumer.matrix.name in known:  # else no token was routed to it
                found = Moments.of_columns(one.columns(consumer), known.pop(consumer.matrix.name))
                fit(model, consumer, found, damping)


def fit(model: nn.Module, consumer: Consumer, found: Moments, damping: float) -> None:
    """Writes the fitted columns and bias into the model; what changes is added to its momentum copies, too."""
    W_RC, bias = consumer.weight(model), consumer.bias
    change_RK = found.fitted_change(W_RC, damping, bias is not None)
    for one in (consumer, *consumer.followers):
        weight = one.matrix.view(model)
        weight[:, found.kept] = (weight[:, found.kept].float() + change_RK).to(weight.dtype)
    if bias is not None:
        _add_to_bias(consumer, found.fitted_bias(W_RC, W_RC[:, found.kept] + change_RK))


def _add_to_bias(consumer: Consumer, change_R: Tensor) -> None:
    for one in (consumer, *consumer.followers):
        if one.bias is not None:
            one.bias.add_(change_R.to(one.bias.dtype))


def _seen_without(
    model: nn.Module, one: Leaving, found: Moments, listener: Listener, gates: Gates, stop: Stop, visit: Visit
) -> None:
    """Counts what a consumer was given in the run of the block that has just ended, and what it is given while the gates are shut."""
    (consumer,) = one.consumers
    before = listener.taken()
    if not before:
        return
    gates.set(one.shut)
    after = listener.run(partial(stop.run, visit), len(before))
    gates.set(one.opened)
    for before_NTC, after_NTC in zip(before, after, strict=True):
        add_call(found, before_NTC, after_NTC, visit, mask_of_text(model, one.unit.tower), consumer.matrix.name)


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
