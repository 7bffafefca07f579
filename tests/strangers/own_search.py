"""A search method of one's own: channels are worth the norm of their weights, and those that go leave at the last step."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from prunus import Budget, Decision, SearchMethod
from prunus.anatomy import Unit, linears
from prunus.structured import State


class ByMagnitude(Budget, SearchMethod):
    """Removes the channels whose rows and columns have the smallest norm."""

    method: Literal["by_magnitude"] = "by_magnitude"
    reads_gradients: ClassVar[bool] = False

    def reads(self, t: int, total_steps: int) -> bool:
        return t == total_steps - 1

    def evidence(self, model: nn.Module, unit: Unit, gate: Tensor) -> Tensor:
        squares = torch.zeros_like(gate)
        for site, layer in linears(model, unit):
            norms = layer.features(layer.weight).float().square().sum(1)
            squares += unit.gather(norms, site.order).to(gate.device)
        return squares.sqrt()

    def decide(self, state: State, t: int, total_steps: int, units: tuple[Unit, ...]) -> Decision | None:
        if t < total_steps - 1:
            return None
        kept = self.keep({name: -norm for name, norm in state["score"].items()}, units, self.ratio)
        return Decision(kept, {name: mask.float() for name, mask in kept.items()}, self.ratio)
