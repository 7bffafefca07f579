"""UPop: unified and progressive pruning (Shi et al., ICML 2023), as a method.

Every update, in the paper's order (Algorithm 1):
  1. G ← Σ over steps of ∂L/∂ζ, raw, fp32;
  2. G is z-scored within all attention units and within all MLP units, across layers and towers;
  3. all channels stand in one ranking, the largest first: those go until the pruned cost is p_t of the whole;
  4. ζ ← 1 on channels that stay and 1 − p_t/p on those that go. A channel can come back at the next update.
At the last update p_t = p, so every ζ is 0 or 1 and extraction changes nothing.

The paper's ℓ1 term on ζ adds the same constant to every gradient of a group while ζ > 0, and the z-score removes it
again, so it is left out.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import Tensor

from prunus.anatomy import Unit
from prunus.errors import PrunusError
from prunus.structured.schedules import SCHEDULES, ScheduleName
from prunus.structured.scores import standardise
from prunus.structured.selection import select, select_as_published
from prunus.typed import Count, Steps, Typed

REFERENCE_COST, REFERENCE_COST_OF_VISION = 36.0, 12.0
"""What the published code charges for an attention channel where an MLP channel costs 1: 36 (12 heads × q, k, v) in BLIP and
CLIP, whatever the heads of a tower; 12 in DeiT and Segmenter, which are vision alone."""


class UPop(Typed):
    """Unified and progressive pruning to `ratio` of the prunable cost.

    Raises:
        PrunusError: a field is out of range or unknown.
    """

    method: Literal["upop"] = "upop"
    ratio: float = Field(gt=0, lt=1)
    """Share of the prunable cost to remove, p."""
    schedule: ScheduleName = "cosine"
    """How p_t grows to p."""
    interval: Steps | None = None
    """Steps between updates. None: the steps that one percent of compression takes."""
    normalize: Literal["sum", "step"] = "sum"
    """z-score the accumulated gradient (the published code), or every step's before adding it (the paper)."""
    cost: Literal["parameters", "channels", "reference"] = "parameters"
    """What a channel costs: its true parameters; 1 (the paper); or what the published code charges, with its cut: 36 for
    attention and 1 for MLPs, 12 and 1 where nothing but vision is searched."""
    align: Literal[1, 8, 16, 32] = 1
    """Kept widths are multiples of this, inside the same budget. Units narrower than it stay whole."""
    min_channels: Count = 1
    """Channels that every unit keeps."""
    hold: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps, at the end, that train at the final gates."""
    unit_ratios: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(default_factory=dict)
    """Share of the channels of each unit that is to go, instead of one ranking over all units, such as
    `SparsityPlan.unit_ratios` gives; units that are not named stay whole. `ratio` is what they come to."""
    include: tuple[str, ...] = ("*",)
    """Units to prune: globs over names, blocks, towers and components. `*` is all but connectors."""
    exclude: tuple[str, ...] = ()
    """Units to leave whole, likewise."""

    @model_validator(mode="after")
    def _published_cut_is_plain(self) -> UPop:
        if self.cost == "reference" and (self.align > 1 or self.min_channels > 1):
            raise PrunusError(
                "cost", "reference", "the published cut knows neither align nor min_channels; take cost: parameters, or leave them out"
            )  # fmt: skip
        return self

    def search_steps(self, total_steps: int) -> int:
        """Steps until the final ratio is reached, T; the rest is the hold phase."""
        return max(1, round(total_steps * (1 - self.hold)))

    def update_interval(self, total_steps: int) -> int:
        """Steps between updates."""
        return self.interval or max(1, round(self.search_steps(total_steps) * 0.01 / self.ratio))

    def is_update(self, t: int, total_steps: int) -> bool:
        """Whether the masks are renewed after step t (0-based)."""
        steps = self.search_steps(total_steps)
        return t == steps - 1 or (t < steps and (t + 1) % self.update_interval(total_steps) == 0)

    def ratio_at(self, t: int, total_steps: int) -> float:
        """p_t, the ratio asked for after step t (0-based)."""
        steps = self.search_steps(total_steps)
        return self.ratio if t >= steps - 1 else self.ratio * min(1.0, SCHEDULES[self.schedule](t, steps))

    def unit_costs(self, units: tuple[Unit, ...]) -> dict[str, float]:
        """Cost of one channel of each unit."""
        if self.cost == "parameters":
            return {unit.name: float(unit.channel_cost) for unit in units}
        if self.cost == "channels":
            return {unit.name: float(unit.span) for unit in units}
        is_vision = all(unit.tower == "vision" for unit in units)
        attention = REFERENCE_COST_OF_VISION if is_vision else REFERENCE_COST
        return {unit.name: (attention if unit.is_attention else 1.0) * unit.span for unit in units}

    def accumulate(self, total: dict[str, Tensor], step: dict[str, Tensor], units: tuple[Unit, ...]) -> None:
        """Adds one step's gate gradients to the running sums, in place."""
        for name, gradient in (standardise(step, units) if self.normalize == "step" else step).items():
            total[name] += gradient

    def masks(self, scores: dict[str, Tensor], units: tuple[Unit, ...], ratio: float) -> dict[str, Tensor]:
        """Which channels stay at `ratio`: unit → bool (channels,)."""
        ranked = standardise(scores, units) if self.normalize == "sum" else scores
        if self.unit_ratios:
            return self._masks_by_unit(ranked, ratio)
        if self.cost == "reference":
            return select_as_published(ranked, self.unit_costs(units), ratio)
        return select(ranked, self.unit_costs(units), ratio, self.min_channels, self.align)

    def _masks_by_unit(self, ranked: dict[str, Tensor], ratio: float) -> dict[str, Tensor]:
        """Every unit at its own ratio, which grows with `ratio`."""
        masks: dict[str, Tensor] = {}
        for name, scores in ranked.items():
            floor = max(self.min_channels, self.align)
            own = min(self.unit_ratios.get(name, 0.0) * ratio / self.ratio, max(0.0, 1 - floor / scores.numel()))
            masks |= select({name: scores}, {name: 1.0}, own, self.min_channels, self.align)
        return masks

    def check(self, units: tuple[Unit, ...]) -> None:
        """Refuses ratios of units that are not searched, or that come to something else than `ratio`.

        Raises:
            PrunusError: see above.
        """
        if not self.unit_ratios:
            return
        costs = self.unit_costs(units)
        for name in self.unit_ratios:
            if name not in costs:
                raise PrunusError("unit_ratios", name, "no such unit is searched; `prunus inspect` lists them")
        total = sum(costs[unit.name] * unit.channels for unit in units)
        reached = sum(costs[u.name] * u.channels * self.unit_ratios.get(u.name, 0.0) for u in units) / total
        if abs(reached - self.ratio) > 0.005:
            raise PrunusError("ratio", self.ratio, f"the ratios of the units come to {reached:.4f}; write that")

    def gates(self, masks: dict[str, Tensor], ratio: float) -> dict[str, Tensor]:
        """ζ: 1 on channels that stay, 1 − p_t/p on those that go."""
        closing = 1 - ratio / self.ratio
        return {name: mask.float() + (~mask).float() * closing for name, mask in masks.items()}
