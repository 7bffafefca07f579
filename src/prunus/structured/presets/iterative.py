"""Iterative pruning in k rounds: by magnitude (Gan et al., 2022), and with a straight-through estimator (Sanh et al., 2020); UPop's Table 6.

Round i of k, with training between:
  magnitude: of all channels, by √(Σ w²) over their rows and columns, the smallest are cut for good until i/k of p has gone;
  STE:       ζ trains on L + ℓ1 as in mask-based and unified pruning, with the mask M of the last round in its place:
             y = M ⊙ (W x + b), ∂L/∂ζ := ∂L/∂M; M is then the top of |ζ| anew, i/k of p being out of it.
"""

from __future__ import annotations

from typing import Literal

from prunus.structured.closing import Rounds, StraightThrough
from prunus.structured.composed import Composed, Parts
from prunus.structured.gate_training import GateTraining
from prunus.structured.importance import TrainedGate, WeightMagnitude
from prunus.structured.scope import Everyone, WithinComponent
from prunus.typed import Count, Typed


class InRounds(Typed):
    """How often is pruned."""

    rounds: Count = 5
    """k, evenly spread over the steps."""


class IterativeMagnitude(InRounds, Composed):
    """The channels with the smallest weights, in rounds."""

    method: Literal["iterative_magnitude"] = "iterative_magnitude"

    def parts(self) -> Parts:
        return Parts(WeightMagnitude(), Everyone(), Rounds(rounds=self.rounds))


class IterativeSTE(InRounds, GateTraining, Composed):
    """Trained gates behind masks of zeros and ones, in rounds."""

    method: Literal["iterative_ste"] = "iterative_ste"
    ranking: Literal["unified", "mask_based"] = "unified"
    """One over all components, or one of every component."""

    def parts(self) -> Parts:
        scope = Everyone() if self.ranking == "unified" else WithinComponent()
        return Parts(TrainedGate.like(self), scope, StraightThrough(rounds=self.rounds))
