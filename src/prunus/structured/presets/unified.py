"""Unified pruning (UPop's Algorithm 3).

1–5.  θ and ζ train together on L + w_a Σ|ζ_attention| + w_m Σ|ζ_mlp|;                    importance
6–9.  |ζ| is z-scored within all attention units and within all MLP units, and all stand in one ranking;   scope
10.   at the last step, all at once, its end is cut, and ζ becomes part of the weights.                    closing
"""

from __future__ import annotations

from typing import Literal

from prunus.structured.closing import AtEnd
from prunus.structured.composed import Composed, Parts
from prunus.structured.gate_training import GateTraining
from prunus.structured.importance import TrainedGate
from prunus.structured.scope import Everyone


class Unified(GateTraining, Composed):
    """Trained gates, in one ranking over all components."""

    method: Literal["unified"] = "unified"

    def parts(self) -> Parts:
        return Parts(TrainedGate.like(self), Everyone(), AtEnd())
