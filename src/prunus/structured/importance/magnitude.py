"""Weight magnitude (Gan et al., 2022, at the granularity of channels): the norm of all rows and columns of a channel."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from prunus.anatomy import Unit, linears
from prunus.structured.importance.importance import Importance
from prunus.structured.state import State


class WeightMagnitude(Importance):
    """√(Σ w²) over a channel's rows and biases in the producers and its columns in the consumer. The smallest goes first."""

    importance: Literal["magnitude"] = "magnitude"
    reads_gradients: ClassVar[bool] = False
    adds_up: ClassVar[bool] = False

    def evidence(self, model: nn.Module, unit: Unit, gate: Tensor) -> Tensor:
        squares = torch.zeros(unit.channels, device=gate.device)
        for site, layer in linears(model, unit):
            of_features = layer.features(layer.weight).float().square().sum(1)
            if layer.bias is not None and site is not unit.consumer:
                of_features = of_features + layer.bias.float().square().flatten()
            squares += unit.gather(of_features, site.order).to(gate.device)
        return squares.sqrt()

    def scores(self, state: State) -> dict[str, Tensor]:
        return {name: -norm for name, norm in state["score"].items()}
