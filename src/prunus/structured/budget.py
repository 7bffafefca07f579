"""How much is to go, what it is counted in, and what must stay: settings that search methods share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from prunus.anatomy import Unit
from prunus.errors import PrunusError
from prunus.structured.selection import Cost, cost_of, reachable, select, select_as_published
from prunus.structured.whole import Price, Storage, Whole
from prunus.typed import Count, Typed

Ratio = Annotated[float, Field(gt=0, lt=1)]
"""A share that is to go: some of it, but not all."""

REFERENCE_COST, REFERENCE_COST_OF_VISION = 36.0, 12.0
"""What the published code charges for an attention channel where an MLP channel costs 1: 36 (12 heads × q, k, v) in BLIP and
CLIP, whatever the heads of a tower; 12 in DeiT and Segmenter, which are vision alone."""


class Budget(Typed):
    """What is to go: a share of the prunable cost, or all above a number of parameters, multiply-accumulates, bytes or milliseconds. Mixed
    into a search method, before `SearchMethod`."""

    ratio: Ratio | None = None
    """Share of the prunable cost to remove, p."""
    max_parameters: int | None = Field(default=None, gt=0)
    """Instead of `ratio`: parameters of the whole model that stay at most; less than a channel's fewer, with `align` a step's."""
    max_macs: int | None = Field(default=None, gt=0)
    """Instead of `ratio`: multiply-accumulates of one call on an example that stay at most, likewise."""
    max_bytes: int | None = Field(default=None, gt=0)
    """Instead of `ratio`: bytes that stay at most, likewise: of the weights on disk, and of a key-value cache (`storage`)."""
    max_milliseconds: float | None = Field(default=None, gt=0)
    """Instead of `ratio`: milliseconds of one call on an example that stay at most, by a table of every unit's time at a few widths that is
    measured on this machine."""
    storage: Storage = Storage()
    """What `max_bytes` counts: `Storage(dtype="bfloat16", cache_tokens=4096, cache_batch=8)`."""
    cost: Literal["parameters", "channels", "reference"] = "parameters"
    """What a channel costs: its true parameters; 1 (the paper); or what the published code charges, with its cut: 36 for
    attention and 1 for MLPs, 12 and 1 where nothing but vision is searched. With `max_…` it is what that counts."""
    align: Literal[1, 8, 16, 32, 64, 128] = 1
    """Kept widths are multiples of this, inside the same budget. Units no wider than it stay whole, and the others make up for them."""
    min_channels: Count = 1
    """Channels that every unit keeps."""

    _costs: Mapping[str, Cost] | None = PrivateAttr(default=None)
    """Unit → cost of its channels, in what the budget is counted in, where that is known only once the model is."""

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
        if self.max_bytes is None and self.storage != Storage():
            raise PrunusError(
                "storage", str(self.storage), "it says how bytes are counted; give max_bytes, or leave it out"
            )
        return self

    @property
    def counts_an_example(self) -> bool:
        """Whether the budget is counted on a call of the model."""
        counts_cache = self.max_bytes is not None and self.storage.cache_tokens > 0
        return self.max_macs is not None or self.max_milliseconds is not None or counts_cache

    @property
    def is_limit(self) -> bool:
        """Whether no more than a number may stay, rather than about a share go."""
        return any(getattr(self, name) is not None for name in AMOUNTS[1:])

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
            PrunusError: it cannot be reached, or is already; it is counted on an example, and there is none.
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
        name = next(name for name in AMOUNTS if getattr(self, name) is not None)
        most, (total, costs) = getattr(self, name), self._price(whole, units)
        widths = {unit.name: torch.zeros(unit.channels, device="cpu") for unit in units}
        least = total - reachable(widths, costs, self.min_channels, self.align)
        if not least <= most < total:
            low, high, there = (
                f"{x:.4g}" if name == "max_milliseconds" else f"{int(x):,}" for x in (least, total - 1, total)
            )
            reach = f"below {there}" if name == "max_milliseconds" else f"to {high}"
            raise PrunusError(name, most, f"from {low} {reach} can be reached; the model has {there}")
        prunable = sum(cost_of(costs[unit.name], unit.channels) for unit in units)
        fitted = self.model_copy(update={"ratio": (total - most) / prunable})
        fitted._costs = costs
        return fitted

    def _price(self, whole: Whole, units: tuple[Unit, ...]) -> Price:
        if self.max_parameters is not None:
            return whole.parameters(units)
        if self.max_macs is not None:
            return whole.macs(units)
        if self.max_bytes is not None:
            return whole.bytes(units, self.storage)
        table = whole.milliseconds(units, self.align)
        return Price(table.total, table.costs(units))

    def needs(self) -> Any:
        """What the method needs, and an example where the budget counts on one."""
        return super().needs()._replace(example=self.counts_an_example)  # type: ignore[misc]

    def unit_costs(self, units: tuple[Unit, ...]) -> dict[str, Cost]:
        """Cost of the channels of each unit."""
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

    def select(self, ranked: dict[str, Tensor], costs: Mapping[str, Cost], ratio: float) -> dict[str, Tensor]:
        """As `keep`, of any units with costs: the nearest to `ratio`, or, under a limit in absolute numbers, no less."""
        return select(ranked, costs, ratio, self.min_channels, self.align, at_least=self.is_limit)

    def check(self, units: tuple[Unit, ...]) -> None:
        """Refuses a ratio out of reach.

        Raises:
            PrunusError: see above.
        """
        self.keep({unit.name: torch.zeros(unit.channels, device="cpu") for unit in units}, units, self.goal)


AMOUNTS = ("ratio", "max_parameters", "max_macs", "max_bytes", "max_milliseconds")
"""Settings of which one says how much is to go."""
