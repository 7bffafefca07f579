"""First-order Taylor: what the loss would change by if a channel were shut (Molchanov et al., CVPR 2019, equation 8, without its square)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from prunus.anatomy import Unit
from prunus.structured.importance.gate_gradient import GateGradient
from prunus.structured.state import State


class Taylor(GateGradient):
    """Σ over steps of |Σ w · ∂L/∂w| over the rows and biases of a channel, which is |ζ · ∂L/∂ζ|. The smallest goes first."""

    importance: Literal["taylor"] = "taylor"  # type: ignore[assignment]

    def evidence(self, model: nn.Module, unit: Unit, gate: Tensor) -> Tensor | None:
        slope = super().evidence(model, unit, gate)
        return None if slope is None else (slope * gate.detach()).abs()

    def scores(self, state: State) -> dict[str, Tensor]:
        return {name: -total for name, total in state["score"].items()}
