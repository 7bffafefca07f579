"""What an importance is: what is read of a channel, how it adds up, and the order that follows from it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from prunus.anatomy import Unit
from prunus.structured.gate_training import GateTraining
from prunus.structured.scores import gate_gradient
from prunus.structured.state import State
from prunus.typed import Typed, named


class Importance(Typed):
    """Base of the importances. One of your own needs a name, `importance: Literal["…"] = "…"`, and what differs from ∂L/∂ζ summed up."""

    importance: str
    """The name by which recipes find it."""

    reads_gradients: ClassVar[bool] = True
    """Whether the evidence is a gradient (`SearchMethod.reads_gradients`)."""
    adds_up: ClassVar[bool] = True
    """Whether the evidence of every step counts; otherwise it is read when a decision is due, and the last reading counts."""

    def training(self) -> GateTraining | None:
        """How gates train, where they do: the state then has the kind `zeta`, and `observe` leaves gradients in its tensors' `grad`."""
        return None

    def evidence(self, model: nn.Module, unit: Unit, gate: Tensor) -> Tensor | None:
        """What is read of a unit, (channels,), fp32; see `SearchMethod.evidence`."""
        return gate_gradient(model, unit, gate)

    def begin(self, gates: dict[str, Tensor]) -> State:
        """The state before the first step."""
        return {"score": {name: torch.zeros_like(gate) for name, gate in gates.items()}}

    def observe(self, state: State, found: dict[str, Tensor], units: tuple[Unit, ...]) -> None:
        """Adds the evidence of one step to the state, in place."""
        for name, value in found.items():
            if not self.adds_up:
                state["score"][name].zero_()
            state["score"][name] += value

    def scores(self, state: State) -> dict[str, Tensor]:
        """Unit → (channels,). The channels with the largest go first."""
        return dict(state["score"])

    def is_silent(self, state: State) -> bool:
        """Whether nothing has been read so far that would tell channels apart."""
        return False


AnyImportance = named(Importance, "importance")
"""An importance that a recipe names."""
