"""The matrices that read a unit's channels: one of a layer, or one of every expert.

Shapes: R rows, C columns, N channels, F columns of a channel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
    is_shared: bool = False
    """Whether others hold its weight or its bias, too, so that neither can be fitted to what this one is given."""
    followers: tuple[Consumer, ...] = ()
    """The same of momentum copies of the unit."""

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
    """Unit → the matrices that read its channels; none of whole experts.

    Raises:
        PrunusError: no statistics can be taken of a layer, because it is in a form that is unknown.
    """
    known = by_parameter(found.matrices)
    holders = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return {unit.name: _of_unit(model, unit, known, holders) for unit in units if not unit.sliced}


def _of_unit(
    model: nn.Module, unit: Unit, known: Mapping[str, Sequence[Matrix]], holders: Mapping[int, int]
) -> list[Consumer]:
    layer = linears(model, unit)[-1][1]
    module = f"{unit.path}.{unit.consumer.linear}"
    parameter = f"{module}.{layer.name}" if not layer.is_fused else module
    owners = unit.spread(torch.arange(unit.channels, device="cpu"), unit.consumer.repeats, unit.consumer.order)
    if not layer.is_fused:
        rows, columns = layer.weight.shape if layer.side == 1 else tuple(reversed(layer.weight.shape))
        matrices = [Matrix(
            name=module, parameter=parameter, transposed=layer.side == 0, block=unit.block, tower=unit.tower,
            rows=rows, columns=columns,
        )]  # fmt: skip
    elif parameter in known:
        matrices = list(known[parameter])
        owners = owners[: len(owners) // layer.weight.shape[0]]
    else:
        raise PrunusError("model", parameter, f"what its experts are given cannot be seen; exclude {unit.name}")
    is_shared = any(holders[id(one)] > 1 for one in layer.parameters.values())
    of_channels = owners.argsort(stable=True).view(unit.channels, -1)
    return [
        Consumer(
            matrix, of_channels, layer, is_shared,
            tuple(_follower(model, unit, matrix, of_channels, path) for path in unit.mirrors),
        )
        for matrix in matrices
    ]  # fmt: skip


def _follower(model: nn.Module, unit: Unit, matrix: Matrix, of_channels: Tensor, path: str) -> Consumer:
    there = replace(matrix, parameter=path + matrix.parameter.removeprefix(unit.path))
    return Consumer(there, of_channels, linears(model, unit, path)[-1][1])
