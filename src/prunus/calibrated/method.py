"""Narrowing without training: what a channel is worth, who competes with whom, and how what goes is made up for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from prunus.allocation import AnyAllocator
from prunus.anatomy import Unit
from prunus.calibrated.scores import AnyScore, GradientTimesGate, SurgeonCost
from prunus.errors import PrunusError
from prunus.structured import AnyScope, Budget, Scope, WithinUnit

Compensation = Literal["none", "bias", "refit"]


class Calibrated(Budget):
    """Channels leave by what calibration data say, and what reads the others makes up for them."""

    method: Literal["calibrated"] = "calibrated"
    score: AnyScore = SurgeonCost()
    """What a channel is worth, such as `SurgeonCost()` or `Fluctuation()`; with `RouterWeighted()` whole experts leave."""
    scope: AnyScope = WithinUnit()
    """Who competes with whom, such as `WithinUnit()` or `Everyone()`."""
    allocation: AnyAllocator | None = None
    """How much of each unit goes, by a method such as `OWL()` or `ECoFLaP()`, so that all of it comes to what is asked; its own sparsity does
    not count. Channels then compete within their unit."""
    compensation: Compensation = "refit"
    """`refit`: the consumer's other columns, and its bias if it has one, are fitted to what it gave before, by least squares;
    `bias`: its bias takes the mean of what is gone, as the dense model has it (FLAP); `none`."""
    damping: float = Field(default=0.01, gt=0, le=1e6)
    """Of the refit: what holds columns to what they were, as a share of the mean of the Gram matrix's diagonal."""
    plain: bool = False
    """An ordinary config says the result, so that it loads where prunus is not: units whose width one entry of the config sets keep as
    many channels as each other. By `*`, units that no entry sets stay whole; others are refused by name."""
    attention: Literal["widths", "heads"] = "widths"
    """What a channel of an attention is: an index of the head width, in all heads; or, of a plain result, a whole head, that is one of
    keys and values with all queries that look at it."""
    include: tuple[str, ...] = ("*",)
    """Units to narrow: globs over names, blocks, towers and components. `*` is all but connectors."""
    exclude: tuple[str, ...] = ()
    """Units to leave whole, likewise."""

    @model_validator(mode="after")
    def _heads_are_plain(self) -> Self:
        if self.attention == "heads" and not self.plain:
            raise PrunusError("attention", "heads", "how many there are is said by an ordinary config; set plain: true")
        return self

    @model_validator(mode="after")
    def _one_says_the_shares(self) -> Self:
        if self.allocation is not None and self.plain:
            raise PrunusError(
                "allocation",
                self.allocation.method,
                "an ordinary config says one width for all blocks; leave out one of both",
            )
        if self.allocation is not None and self.scope != WithinUnit():
            raise PrunusError("allocation", self.allocation.method, "it says the share of every unit; leave scope out")
        return self

    @property
    def meant(self) -> dict[str, Any]:
        """The settings that say which channels are scored, and how."""
        return self.model_dump(mode="json", include={"score", "plain", "attention", "include", "exclude"})

    @property
    def asks_for_loss(self) -> bool:
        """Whether the training loss says what channels are worth, or may say how much of each unit goes."""
        return isinstance(self.score, GradientTimesGate) or (self.allocation is not None and self.allocation.needs_loss)

    def states_ratio(self) -> bool:
        return bool(self.scope.states_ratio())

    def given_ratio(self, units: tuple[Unit, ...]) -> float | None:
        scope: Scope = self.scope
        return scope.ratio(units, self)

    def choose(self, worth: dict[str, Tensor], units: tuple[Unit, ...]) -> dict[str, Tensor]:
        """Which channels stay: unit → bool (channels,), on the CPU.

        Args:
            worth: unit → (channels,). The smallest go first.
        """
        ranked = {name: -value.cpu() for name, value in worth.items()}
        scope: Scope = self.scope
        return scope.keep(scope.comparable(ranked, units), units, self.for_units(units), self.goal)

    def for_units(self, units: Sequence[Unit]) -> Calibrated:
        """The same with the channels that units cannot do without as a floor."""
        floor = max([self.min_channels, *(unit.least for unit in units)])
        return self.model_copy(update={"min_channels": floor})

    def check(self, units: tuple[Unit, ...]) -> None:
        """Refuses a ratio out of reach.

        Raises:
            PrunusError: see above.
        """
        self.choose({unit.name: torch.zeros(unit.channels) for unit in units}, units)
