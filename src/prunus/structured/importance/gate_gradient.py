"""The accumulated gradient of the gates: UPop (Shi et al., ICML 2023, Algorithm 1)."""

from __future__ import annotations

from typing import Literal

from prunus.structured.importance.importance import Importance
from prunus.structured.state import State


class GateGradient(Importance):
    """G = Σ over steps of ∂L/∂ζ, raw, in fp32. Where it is large and positive the loss falls as the channel shrinks: that one goes first."""

    importance: Literal["gate_gradient"] = "gate_gradient"

    def is_silent(self, state: State) -> bool:
        return not any(score.any() for score in state["score"].values())
