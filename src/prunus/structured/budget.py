"""How much is to go, what it is counted in, and what must stay: settings that search methods share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor, nn

from prunus.anatomy import Anatomy, Unit
from prunus.cost import ChannelMacs, channel_macs
from prunus.errors import PrunusError
from prunus.modules import evaluating
from prunus.structured.selection import reachable, select, select_as_published
from prunus.typed import Count, Typed

Ratio = Annotated[float, Field(gt=0, lt=1)]
"""A share that is to go: some of it, but not all."""

REFERENCE_COST, REFERENCE_COST_OF_VISION = 36.0, 12.0
"""What the published code charges for an attention channel where an MLP channel costs 1: 36 (12 heads × q, k, v) in BLIP and
CLIP, whatever the heads of a tower; 12 in DeiT and Segmenter, which are vision alone."""


class Whole(NamedTuple):
    """What budgets in absolute numbers are held against."""

    parts: Anatomy
    """The model."""
    count_macs: Callable[[], ChannelMacs] | None = None
    """Counts what it computes on an example; None where there is none."""


def counted_macs(model: nn.Module, units: Sequence[Unit], example: Callable[[], object]) -> ChannelMacs:
    """What one call of `example`, which must use `model`, computes.

    Raises:
        PrunusError: it calls none of the units.
    """
    with evaluating(model), torch.random.fork_rng():
        counted = channel_macs(model, example, units)
    if not any(counted.channel.values()):
        raise PrunusError(
            "example", counted.total, "it does not call this model, or no unit that is searched; give lambda: model(**batch)"
        )  # fmt: skip
    return counted


class Budget(Typed):
    """What is to go: a share of the prunable cost, or all above a number of parameters or multiply-accumulates. Mixed into a search method,
    before `SearchMethod`."""

    ratio: Ratio | None = None
    """Share of the prunable cost to remove, p."""
    max_parameters: int | None = Field(default=None, gt=0)
    """Instead of `ratio`: parameters of the whole model that stay at most; less than a channel's fewer, with `align` a step's."""
    max_macs: int | None = Field(default=None, gt=0)
    """Instead of `ratio`: multiply-accumulates of one call on an example that stay at most, likewise."""
    cost: Literal["parameters", "channels", "reference"] = "parameters"
    """What a channel costs: its true parameters; 1 (the paper); or what the published code charges, with its cut: 36 for
    attention and 1 for MLPs, 12 and 1 where nothing but vision is searched. With `max_macs` it is its multiply-accumulates."""
    align: Literal[1, 8, 16, 32] = 1
    """Kept widths are multiples of this, inside the same budget. Units narrower than it stay whole."""
    min_channels: Count = 1
    """Channels that every unit keeps."""

    _costs: Mapping[str, float] | None = PrivateAttr(default=None)
    """Unit → cost of a channel, in what the budget is counted in, where that is known only once the model is."""

    @model_validator(mode="after")
    def _published_cut_is_plain(self) -> Self:
        if self.cost == "reference" and (self.align > 1 or self.min_channels > 1):
            raise PrunusError(
                "cost", "reference", "the published cut knows neither align nor min_channels; take cost: parameters, or leave them out"
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _says_how_much(self) -> Self:
        said = {name: value for name in AMOUNTS if (value := getattr(self, name)) is not None}
        if len(said) > 1:
            raise PrunusError(
                list(said)[1], list(said.values())[1], f"{next(iter(said))} says how much is to go; give one of them"
            )
        if self.states_ratio() and said.keys() - {"ratio"}:
            name = next(name for name in said if name != "ratio")
            raise PrunusError(name, said[name], "shares of parts say how much is to go; leave it out")
        if not said and not self.states_ratio():
            raise PrunusError("ratio", None, f"say how much is to go: {', '.join(AMOUNTS[:-1])} or {AMOUNTS[-1]}")
        if self.ratio is None and said and self.cost != "parameters":
            raise PrunusError("cost", self.cost, f"{next(iter(said))} says what is counted; leave cost out")
        return self

    def states_ratio(self) -> bool:
        """Whether other settings say how much is to go."""
        return False

    def given_ratio(self, units: tuple[Unit, ...]) -> float | None:
        """The ratio that other settings come to."""
        return None

    @property
    def goal(self) -> float:
        """The ratio at the end, p.

        Raises:
            PrunusError: it follows from the model, and no model has been seen.
        """
        if self.ratio is None:
            raise PrunusError(
                "ratio", None, "it follows from the model; ask the method of a Search for it, or call fit"
            )
        return self.ratio

    def fit(self, whole: Whole, units: tuple[Unit, ...]) -> Self:
        """The same with the ratio that the budget comes to for one model.

        Raises:
            PrunusError: it cannot be reached, or is already; multiply-accumulates have not been counted.
        """
        given = self.given_ratio(units)
        if given is not None:
            if self.ratio is not None and abs(given - self.ratio) > 0.005:
                raise PrunusError("ratio", self.ratio, f"the ratios that are given come to {given:.4f}; write that")
            if not 0 < given < 1:
                raise PrunusError("ratios", given, "those that are given take nothing; give some above 0")
            return self if self.ratio is not None else self.model_copy(update={"ratio": given})
        if self.ratio is not None:
            return self
        if self.max_parameters is not None:
            name, most, total = "max_parameters", self.max_parameters, whole.parts.parameters
            costs = {unit.name: float(unit.channel_cost * (1 + len(unit.mirrors))) for unit in units}
        else:
            assert self.max_macs is not None
            if whole.count_macs is None:
                raise PrunusError(
                    "example",
                    None,
                    "max_macs is counted on a call of the model; give one: example=lambda: model(**batch)",
                )
            macs = whole.count_macs()
            name, most, total = "max_macs", self.max_macs, macs.total
            costs = {unit.name: macs.channel[unit.name] for unit in units}
        widths = {unit.name: torch.zeros(unit.channels, device="cpu") for unit in units}
        least = total - reachable(widths, costs, self.min_channels, self.align)
        if not least <= most < total:
            raise PrunusError(
                name, most, f"from {int(least):,} to {total - 1:,} can be reached; the model has {total:,}"
            )
        prunable = sum(costs[unit.name] * unit.channels for unit in units)
        fitted = self.model_copy(update={"ratio": (total - most) / prunable})
        fitted._costs = costs
        return fitted

    def needs(self) -> Any:
        """What the method needs, and an example where the budget counts on one."""
        return super().needs()._replace(macs=self.max_macs is not None)  # type: ignore[misc]

    def unit_costs(self, units: tuple[Unit, ...]) -> dict[str, float]:
        """Cost of one channel of each unit."""
        if self._costs is not None:
            return {unit.name: self._costs[unit.name] for unit in units}
        if self.cost == "parameters":
            return {unit.name: float(unit.channel_cost) for unit in units}
        if self.cost == "channels":
            return {unit.name: float(unit.span) for unit in units}
        is_vision = all(unit.tower == "vision" for unit in units)
        attention = REFERENCE_COST_OF_VISION if is_vision else REFERENCE_COST
        return {unit.name: (attention if unit.is_attention else 1.0) * unit.span for unit in units}

    def keep(self, ranked: dict[str, Tensor], units: tuple[Unit, ...], ratio: float) -> dict[str, Tensor]:
        """Which channels stay when `ratio` of the cost goes, the highest ranks first: unit → bool (channels,).

        Args:
            ranked: unit → (channels,). A large number goes first.
            ratio: up to `goal`.

        Raises:
            PrunusError: the floors leave less than `ratio` to prune, or a rank is not finite.
        """
        if self.cost == "reference":
            return select_as_published(ranked, self.unit_costs(units), ratio)
        return self.select(ranked, self.unit_costs(units), ratio)

    def select(self, ranked: dict[str, Tensor], costs: Mapping[str, float], ratio: float) -> dict[str, Tensor]:
        """As `keep`, of any units with costs: the nearest to `ratio`, or, under a limit in parameters or multiply-accumulates, no less."""
        is_limit = self._costs is not None
        return select(ranked, costs, ratio, self.min_channels, self.align, at_least=is_limit)

    def check(self, units: tuple[Unit, ...]) -> None:
        """Refuses a ratio out of reach.

        Raises:
            PrunusError: see above.
        """
        self.keep({unit.name: torch.zeros(unit.channels, device="cpu") for unit in units}, units, self.goal)


AMOUNTS = ("ratio", "max_parameters", "max_macs")
"""Settings of which one says how much is to go."""
