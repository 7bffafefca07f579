"""Mask-based pruning (Chavan et al., CVPR 2022, for vision and language: UPop's Algorithm 2).

1–5.  θ and ζ train together on L + w_a Σ|ζ_attention| + w_m Σ|ζ_mlp|;                         importance
6–8.  M_i ← the top of |ζ_i|, p of it going, for every component by itself: ζ_i are all masks of one;   scope
9–10. at the last step, all at once, what M_i leaves out is cut, and ζ becomes part of the weights.     closing
"""

from __future__ import annotations

from typing import Literal

from prunus.structured.closing import AtEnd
from prunus.structured.composed import Composed, Parts
from prunus.structured.gate_training import GateTraining
from prunus.structured.importance import TrainedGate
from prunus.structured.scope import WithinComponent


class MaskBased(GateTraining, Composed):
    """Trained gates, ranked within every component."""

    method: Literal["mask_based"] = "mask_based"

    def parts(self) -> Parts:
        return Parts(TrainedGate.like(self), WithinComponent(), AtEnd())
