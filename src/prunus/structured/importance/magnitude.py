"""Weight magnitude (Gan et al., 2022, at the granularity of channels): the norm of all rows and columns of a channel."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from prunus.anatomy import Unit, linears
from prunus.parallel import add_up, from_rows_here, group_of, local
from prunus.structured.importance.importance import Importance
from prunus.structured.scores import of_features
from prunus.structured.state import State


class WeightMagnitude(Importance):
    """√(Σ w²) over a channel's rows and biases in the producers and its columns in the consumer. The smallest goes first."""

    importance: Literal["magnitude"] = "magnitude"
    reads_gradients: ClassVar[bool] = False
    adds_up: ClassVar[bool] = False

    def evidence(self, model: nn.Module, unit: Unit, gate: Tensor) -> Tensor:
        squares = torch.zeros(unit.channels, device=gate.device)
        for site, layer in linears(model, unit):
            found = of_features(layer, layer.features(local(layer.weight)).float().square().sum(1))
            if layer.bias is not None and site is not unit.consumer:
                found = found + from_rows_here(
                    local(layer.bias).float().square().flatten(), layer.bias, layer.bias.numel()
                )
            squares += unit.gather(found, site.order).to(gate.device)
        group = group_of(model.parameters())
        if group is not None:
            add_up([squares], group)
        return squares.sqrt()

    def scores(self, state: State) -> dict[str, Tensor]:
        return {name: -norm for name, norm in state["score"].items()}
