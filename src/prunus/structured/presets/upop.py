"""UPop: unified and progressive pruning (Shi et al., ICML 2023), as a method.

Every update, in the paper's order (Algorithm 1):
  1. G ← Σ over steps of ∂L/∂ζ, raw, fp32;                                                     importance
  2. G is z-scored within all attention units and within all MLP units, across layers and towers;   scope
  3. all channels stand in one ranking, the largest first: those go until the pruned cost is p_t of the whole;
  4. ζ ← 1 on channels that stay and 1 − p_t/p on those that go. A channel can come back at the next update.   closing
At the last update p_t = p, so every ζ is 0 or 1 and extraction changes nothing.

The paper's ℓ1 term on ζ adds the same constant to every gradient of a group while ζ > 0, and the z-score removes it
again, so it is left out.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prunus.anatomy import Unit
from prunus.errors import PrunusError
from prunus.structured.closing import Pace, Progressive, RateGate
from prunus.structured.composed import Composed, Parts
from prunus.structured.importance import GateGradient
from prunus.structured.scope import Everyone, Normalize, WithinUnit
from prunus.typed import Share


class UPop(Pace, Composed):
    """Unified and progressive pruning to `ratio` of the prunable cost.

    Raises:
        PrunusError: a field is out of range or unknown.
    """

    method: Literal["upop"] = "upop"
    normalize: Normalize = "sum"
    """z-score the accumulated gradient (the published code), every step's before adding it (the paper), or nothing."""
    gate: RateGate | None = None
    """What the ratio waits for (BYOP). None: nothing."""
    unit_ratios: dict[str, Share] = Field(default_factory=dict)
    """Share of the channels of each unit that is to go, instead of one ranking over all units: by globs over towers, components,
    blocks and names, the narrower name winning, such as `SparsityPlan.unit_ratios` gives. Units that are not named stay whole.
    `ratio` is what they come to."""

    def parts(self) -> Parts:
        return Parts(
            GateGradient(),
            WithinUnit(ratios=self.unit_ratios) if self.unit_ratios else Everyone(normalize=self.normalize),
            Progressive(schedule=self.schedule, interval=self.interval, gate=self.gate),
        )

    def given_ratio(self, units: tuple[Unit, ...]) -> float | None:
        try:
            return super().given_ratio(units)
        except PrunusError as error:
            raise PrunusError("unit_ratios", error.value, error.remedy) from None
