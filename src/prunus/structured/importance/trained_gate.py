"""Gates that train: mask-based and unified pruning (UPop's Algorithms 2 and 3, after Chavan et al., CVPR 2022)."""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor

from prunus.anatomy import Unit
from prunus.structured.gate_training import GateTraining
from prunus.structured.importance.importance import Importance
from prunus.structured.state import State


class TrainedGate(GateTraining, Importance):
    """|ζ| of gates that train with the weights under an ℓ1 term (UPop, equation 3). The smallest goes first."""

    importance: Literal["trained_gate"] = "trained_gate"

    @classmethod
    def like(cls, training: GateTraining) -> Self:
        """With the settings of a method that trains gates."""
        return cls(**{name: getattr(training, name) for name in GateTraining.model_fields})

    def training(self) -> GateTraining:
        return self

    def begin(self, gates: dict[str, Tensor]) -> State:
        return {"zeta": {name: gate.clone() for name, gate in gates.items()}}

    def observe(self, state: State, found: dict[str, Tensor], units: tuple[Unit, ...]) -> None:
        """Leaves ∂(L + w Σ|ζ|)/∂ζ in the gradients of ζ; the term has none at ζ = 0."""
        weights = self.l1_weights(units)
        for name, gradient in found.items():
            zeta = state["zeta"][name]
            zeta.grad = gradient + weights[name] * torch.sign(zeta.detach())

    def scores(self, state: State) -> dict[str, Tensor]:
        return {name: -zeta.detach().abs() for name, zeta in state["zeta"].items()}
