"""The matrices that read a unit's channels: one of a layer, or one of every expert.

Shapes: R rows, C columns, N channels, F columns of a channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.anatomy import Layer, Matrix, Survey, Unit, by_parameter, linears
from prunus.errors import PrunusError


@dataclass(frozen=True)
class Consumer:
    """A matrix that reads a unit's channels."""

    matrix: Matrix
    columns: Tensor
    """Its columns by channel, (N, F), int64, on the CPU."""
    layer: Layer

    @property
    def bias(self) -> Tensor | None:
        """The bias of its outputs, (R,), without history: what is written into it is written into the model."""
        bias = self.layer.bias
        if bias is None:
            return None
        return bias.detach() if self.matrix.index is None else bias.detach()[self.matrix.index]

    def weight(self, model: nn.Module) -> Tensor:
        """A copy of its weight, (R, C), fp32."""
        return self.matrix.view(model).to(torch.float32, copy=True)


def consumers_of(model: nn.Module, units: Sequence[Unit], found: Survey) -> dict[str, list[Consumer]]:
    """Unit → the matrices that read its channels.

    Raises:
        PrunusError: no statistics can be taken of a layer, because it is in a form that is unknown.
    """
    known = by_parameter(found.matrices)
    return {unit.name: list(_of_unit(model, unit, known)) for unit in units}


def _of_unit(model: nn.Module, unit: Unit, known: Mapping[str, Sequence[Matrix]]) -> list[Consumer]:
    layer = linears(model, unit)[-1][1]
    module = f"{unit.path}.{unit.consumer.linear}"
    parameter = f"{module}.{layer.name}" if not layer.is_fused else module
    owners = unit.spread(torch.arange(unit.channels, device="cpu"), unit.consumer.repeats, unit.consumer.order)
    if not layer.is_fused:
        rows, columns = layer.weight.shape if layer.side == 1 else tuple(reversed(layer.weight.shape))
        matrix = Matrix(
            name=module, parameter=parameter, transposed=layer.side == 0, block=unit.block, tower=unit.tower,
            rows=rows, columns=columns,
        )  # fmt: skip
        return [Consumer(matrix, owners.argsort(stable=True).view(unit.channels, -1), layer)]
    if parameter not in known:
        raise PrunusError("model", parameter, f"what its experts are given cannot be seen; exclude {unit.name}")
    of_one = owners[: len(owners) // layer.weight.shape[0]].argsort(stable=True).view(unit.channels, -1)
    return [Consumer(matrix, of_one, layer) for matrix in known[parameter]]
