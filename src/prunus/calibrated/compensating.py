"""The units of one block: what their consumers are given with and without the channels that go, and the fit that follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from prunus.anatomy import Unit
from prunus.calibrated.consumers import Consumer
from prunus.calibrated.listening import Listener, listening
from prunus.calibrated.method import Calibrated
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
    def written(self) -> Iterator[nn.Parameter]:
        """The parameters that a fit writes into."""
        for consumer in self.consumers:
            for one in (consumer, *consumer.followers):
                yield from one.layer.parameters.values()

    def columns(self, consumer: Consumer) -> Tensor:
        """The columns of a consumer that stay, sorted, on its device."""
        return consumer.columns[self.kept].flatten().sort().values.to(consumer.layer.weight.device)


def compensate(model: nn.Module, leaving: Sequence[Leaving], gates: Gates, stop: Stop, method: Calibrated) -> None:
    """Shuts the gates of channels of one block that go, and fits their consumers' biases, or their columns and biases, in place.

    Hidden neurons do not look at each other, so what is left of them stays what it was, and one run of the block says all of them. Where
    channels do (queries and keys, norms over them), the block is run with and without those that go. Those neurons are seen in the
    run in which the last of these are there for the last time.

    Args:
        leaving: in the order of execution.
    """
    products = method.compensation == "refit"
    needs = (Gram, Sum) if products else (Sum,)
    alone, mixed = ([one for one in leaving if one.stands_alone is so] for so in (True, False))
    targets = [consumer.matrix for one in alone for consumer in one.consumers]
    known: dict[str, Statistics] = {}
    for one in mixed:
        heard = targets if one is mixed[-1] else []
        (consumer,) = one.consumers
        found = Moments.none(one.columns(consumer), consumer.matrix.columns, products)
        with listening(consumer.layer.owner) as listener:
            again = partial(_seen_without, model, one, found, listener, gates, stop)
            known = gather(model, heard, needs, stop, again)
        if not found.tokens:
            raise PrunusError(
                "batches", consumer.matrix.name, "no calibration batch used this layer; give batches that do, or exclude it"
            )  # fmt: skip
        gates.set(one.shut)
        fit(model, consumer, found, method)
    if alone and not mixed:
        known = gather(model, targets, needs, stop)
    for one in alone:
        gates.set(one.shut)
        for consumer in one.consumers:
            if consumer.matrix.name in known:  # else no token was routed to it
                fit(
                    model, consumer, Moments.of_columns(one.columns(consumer), known[consumer.matrix.name], products), method
                )  # fmt: skip


def fit(model: nn.Module, consumer: Consumer, found: Moments, method: Calibrated) -> None:
    """Writes the fitted columns and bias into the model; what changes is added to its momentum copies, too."""
    W_RC, bias = consumer.weight(model), consumer.bias
    W_RK = W_RC[:, found.kept]
    if method.compensation == "refit":
        change_RK = found.fitted_change(W_RC, method.damping, bias is not None)
        for one in (consumer, *consumer.followers):
            weight = one.matrix.view(model)
            weight[:, found.kept] = (weight[:, found.kept].float() + change_RK).to(weight.dtype)
        W_RK = W_RK + change_RK
    if bias is not None:
        change_R = found.fitted_bias(W_RC, W_RK)
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
