"""Surgery: making a model physically smaller from a plan.

Producers lose rows and biases, consumers lose columns. Head counts stay, and every head of a layer keeps the same
channels. The softmax scale of the original width is kept, so the narrowed model computes what the masked one did.
"""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import Tensor, nn

from prunus.anatomy import Anatomy, Unit, linears
from prunus.plan import Plan, mark

_Sliced = dict[int, tuple[Tensor, nn.Parameter]]
"""id of a parameter before → (the parameter, its kept part). Holding the first keeps its id from being reused."""


@torch.no_grad()
def narrow(model: nn.Module, parts: Anatomy, plan: Plan, copies: Container[str] = ()) -> None:
    """Applies a plan in place, and marks what it narrows. Works on `meta` too, where it only changes shapes.

    Args:
        copies: units that are marked as following others.

    Raises:
        PrunusError: the plan was made for another model.
    """
    plan.check(parts)
    for unit in parts:
        if unit.name not in plan.units:
            continue
        kept = plan.kept(unit)
        sliced: _Sliced = {}
        for path in (unit.path, *unit.twins, *unit.mirrors):
            if len(kept) < unit.channels:
                _narrow_unit(model, unit, path, kept, sliced)
            suffix = unit.name.removeprefix(unit.path)
            mark(
                model.get_submodule(path), suffix, plan.units[unit.name], copy=path != unit.path or unit.name in copies
            )


def _narrow_unit(model: nn.Module, unit: Unit, path: str, kept: Tensor, sliced: _Sliced) -> None:
    *producers, consumer = linears(model, unit, path)
    for site, linear in producers:
        index = unit.feature_indices(site, kept)
        factor = unit.layout.factor(site.linear, len(kept) / unit.channels)
        linear.weight = _sliced(linear.weight, 0, index, factor, sliced)
        if linear.bias is not None:
            linear.bias = _sliced(linear.bias, 0, index, factor, sliced)
        linear.out_features = len(index)
    site, linear = consumer
    index = unit.feature_indices(site, kept)
    linear.weight = _sliced(linear.weight, 1, index, 1.0, sliced)
    linear.in_features = len(index)
    unit.layout.shrink(model.get_submodule(path), kept, unit)


def _sliced(parameter: Tensor, side: int, index: Tensor, factor: float, done: _Sliced) -> nn.Parameter:
    """The kept part of a parameter; one that two modules share is cut once and stays shared."""
    if id(parameter) not in done:
        part = parameter.index_select(side, index.to(parameter.device))
        part = part * factor if factor != 1 else part
        done[id(parameter)] = parameter, nn.Parameter(part, parameter.requires_grad)
    return done[id(parameter)][1]
