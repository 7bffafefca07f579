"""Tensors of which every process has some rows, as `torch.distributed.fsdp.fully_shard` makes them (DTensor, Shard(0))."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is spread over processes by whole rows."""
    return type(tensor).__name__ == "DTensor" and _dimension(tensor) is not None


def _dimension(tensor: Any) -> int | None:
    """Which dimension of the mesh shares out the rows; None where it is not one alone, others holding copies."""
    kinds = [type(one).__name__ for one in tensor.placements]
    dimension = kinds.index("Shard") if kinds.count("Shard") == 1 else None
    if dimension is None or tensor.placements[dimension].dim or kinds.count("Replicate") + 1 != len(kinds):
        return None
    return dimension


def local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor: itself, where it is whole."""
    part: Any = tensor
    return part.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, in every process; of a sharded one all have to ask."""
    part: Any = tensor
    return part.full_tensor() if is_sharded(tensor) else tensor


def rows_here(tensor: Any) -> slice:
    """The rows that this process has."""
    if not is_sharded(tensor):
        return slice(0, len(tensor))
    dimension = _dimension(tensor)
    count, place = tensor.device_mesh.size(dimension), tensor.device_mesh.get_local_rank(dimension)
    each = -(-len(tensor) // count)
    return slice(min(place * each, len(tensor)), min((place + 1) * each, len(tensor)))


def reshard(model: nn.Module) -> None:
    """Leaves each process its rows again of what FSDP has gathered and not given back, as after a forward pass without a backward pass."""
    for module in model.modules():
        if any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__):
            module.reshard()  # type: ignore[operator]


def group_of(tensors: Iterable[Any]) -> dist.ProcessGroup | None:
    """The processes over which the first sharded one of these is spread; None if all are whole."""
    first: Any = next((tensor for tensor in tensors if is_sharded(tensor)), None)
    return None if first is None else first.device_mesh.get_group(_dimension(first))


def has_shards(model: nn.Module) -> bool:
    """Whether a parameter of a model is sharded."""
    return any(is_sharded(parameter) for parameter in model.parameters())


def from_rows_here(values: Tensor, tensor: Tensor, size: int) -> Tensor:
    """Values that follow from the rows of a tensor in this process, several to a row, at their places among `size`; zero elsewhere."""
    if not is_sharded(tensor):
        return values
    rows, placed = rows_here(tensor), values.new_zeros(size)
    each = size // len(tensor)
    placed[rows.start * each : rows.start * each + len(values)] = values
    return placed


def type_of(model: nn.Module) -> type[nn.Module]:
    """The class of a model; `fully_shard` changes it to one of its own."""
    return next(kind for kind in type(model).__mro__ if not kind.__module__.startswith("torch.distributed."))


def to_rows_here(values: Tensor, tensor: Tensor) -> Tensor:
    """Of values that multiply a whole tensor, those for its rows in this process."""
    return values[rows_here(tensor)] if is_sharded(tensor) and len(values) > 1 else values
