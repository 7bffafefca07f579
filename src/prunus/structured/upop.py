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

from typing import Literal

from torch import Tensor

from prunus.anatomy import Unit
from prunus.errors import PrunusError
from prunus.structured.budget import Budget
from prunus.structured.method import Decision, SearchMethod, State
from prunus.structured.schedules import Progress
from prunus.structured.scores import standardise


class UPop(Budget, Progress, SearchMethod):
    """Unified and progressive pruning to `ratio` of the prunable cost.

    Raises:
        PrunusError: a field is out of range or unknown.
    """

    method: Literal["upop"] = "upop"
    normalize: Literal["sum", "step"] = "sum"
    """z-score the accumulated gradient (the published code), or every step's before adding it (the paper)."""

    def observe(self, state: State, found: dict[str, Tensor], units: tuple[Unit, ...]) -> None:
        """Adds one step's gate gradients to the running sums, in place."""
        super().observe(state, standardise(found, units) if self.normalize == "step" else found, units)

    def decide(self, state: State, t: int, total_steps: int, units: tuple[Unit, ...]) -> Decision | None:
        """The masks and gates at p_t, when an update is due; none while every gradient has been zero.

        Raises:
            PrunusError: it was zero until the last update.
        """
        if not self.is_update(t, total_steps):
            return None
        scores = state["score"]
        if not any(score.any() for score in scores.values()):
            if t + 1 < self.search_steps(total_steps):
                return None
            raise PrunusError("gradient", "zero", "it was zero or not finite at every step; look at the loss")
        asked = self.ratio_at(t, total_steps)
        kept = self.masks(scores, units, asked)
        return Decision(kept, self.gates(kept, asked), asked)

    def masks(self, scores: dict[str, Tensor], units: tuple[Unit, ...], ratio: float) -> dict[str, Tensor]:
        """Which channels stay at `ratio`: unit → bool (channels,)."""
        return self.keep(standardise(scores, units) if self.normalize == "sum" else scores, units, ratio)

    def gates(self, masks: dict[str, Tensor], ratio: float) -> dict[str, Tensor]:
        """ζ: 1 on channels that stay, 1 − p_t/p on those that go."""
        closing = 1 - ratio / self.ratio
        return {name: mask.float() + (~mask).float() * closing for name, mask in masks.items()}
