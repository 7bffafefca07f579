"""How much is to go, what it is counted in, and what must stay: settings that search methods share."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from prunus.anatomy import Unit, by_name
from prunus.errors import PrunusError
from prunus.structured.selection import select, select_as_published
from prunus.typed import Count, Share, Typed

Ratio = Annotated[float, Field(gt=0, lt=1)]
"""A share that is to go: some of it, but not all."""

REFERENCE_COST, REFERENCE_COST_OF_VISION = 36.0, 12.0
"""What the published code charges for an attention channel where an MLP channel costs 1: 36 (12 heads × q, k, v) in BLIP and
CLIP, whatever the heads of a tower; 12 in DeiT and Segmenter, which are vision alone."""


class Budget(Typed):
    """A share of the prunable cost that is to go. Mixed into a search method, before `SearchMethod`."""

    ratio: Ratio
    """Share of the prunable cost to remove, p."""
    cost: Literal["parameters", "channels", "reference"] = "parameters"
    """What a channel costs: its true parameters; 1 (the paper); or what the published code charges, with its cut: 36 for
    attention and 1 for MLPs, 12 and 1 where nothing but vision is searched."""
    align: Literal[1, 8, 16, 32] = 1
    """Kept widths are multiples of this, inside the same budget. Units narrower than it stay whole."""
    min_channels: Count = 1
    """Channels that every unit keeps."""
    unit_ratios: dict[str, Share] = Field(default_factory=dict)
    """Share of the channels of each unit that is to go, instead of one ranking over all units: by globs over towers, components,
    blocks and names, the narrower name winning, such as `SparsityPlan.unit_ratios` gives. Units that are not named stay whole.
    `ratio` is what they come to."""

    @model_validator(mode="after")
    def _published_cut_is_plain(self) -> Budget:
        if self.cost == "reference" and (self.align > 1 or self.min_channels > 1):
            raise PrunusError(
                "cost", "reference", "the published cut knows neither align nor min_channels; take cost: parameters, or leave them out"
            )  # fmt: skip
        return self

    def unit_costs(self, units: tuple[Unit, ...]) -> dict[str, float]:
        """Cost of one channel of each unit."""
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
            ratio: up to `self.ratio`; ratios of units are reached in step with it.

        Raises:
            PrunusError: the floors leave less than `ratio` to prune, or a rank is not finite.
        """
        if self.unit_ratios:
            return self._keep_by_unit(ranked, units, ratio)
        if self.cost == "reference":
            return select_as_published(ranked, self.unit_costs(units), ratio)
        return select(ranked, self.unit_costs(units), ratio, self.min_channels, self.align)

    def _keep_by_unit(self, ranked: dict[str, Tensor], units: tuple[Unit, ...], ratio: float) -> dict[str, Tensor]:
        kept: dict[str, Tensor] = {}
        ratios = self._ratios(units)
        for name, ranks in ranked.items():
            floor = max(self.min_channels, self.align)
            own = min(ratios.get(name, 0.0) * ratio / self.ratio, max(0.0, 1 - floor / ranks.numel()))
            kept |= select({name: ranks}, {name: 1.0}, own, self.min_channels, self.align)
        return kept

    def _ratios(self, units: tuple[Unit, ...]) -> dict[str, float]:
        if self.unit_ratios.keys() <= {unit.name for unit in units}:
            return self.unit_ratios
        return by_name(self.unit_ratios, {unit.name: unit.labels for unit in units}, "unit_ratios")

    def check(self, units: tuple[Unit, ...]) -> None:
        """Refuses a ratio out of reach, and ratios of units that are not searched or that come to something else than `ratio`.

        Raises:
            PrunusError: see above.
        """
        if self.unit_ratios:
            costs, ratios = self.unit_costs(units), self._ratios(units)
            total = sum(costs[unit.name] * unit.channels for unit in units)
            reached = sum(costs[u.name] * u.channels * ratios.get(u.name, 0.0) for u in units) / total
            if abs(reached - self.ratio) > 0.005:
                raise PrunusError("ratio", self.ratio, f"the ratios of the units come to {reached:.4f}; write that")
        self.keep({unit.name: torch.zeros(unit.channels, device="cpu") for unit in units}, units, self.ratio)
