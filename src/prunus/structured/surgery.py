"""Surgery: making a model physically smaller from a plan.

Producers lose rows and biases, consumers lose columns. Head counts stay, and every head of a layer keeps the same
channels. The softmax scale of the original width is kept, so the narrowed model computes what the masked one did.
"""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import Tensor, nn

from prunus.anatomy import Anatomy, Layer, Unit, linears, resize
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
    *producers, (last, consumer) = linears(model, unit, path)
    for site, layer in producers:
        index = unit.feature_indices(site, kept)
        scales = unit.layout.scales(site, unit, len(kept) / unit.channels)
        if scales is not None:
            scales = scales.repeat_interleave(len(index) // site.repeats)
        weight, bias = layer.weight, layer.bias
        narrow = {layer.name: _sliced(layer, weight, layer.side, index, scales, sliced)}
        if bias is not None:
            narrow[layer.bias_name] = _sliced(layer, bias, bias.ndim - 1, index, scales, sliced)
        layer.owner._parameters.update(narrow)
        resize(layer)
    weight, index = consumer.weight, unit.feature_indices(last, kept)
    consumer.owner._parameters[consumer.name] = _sliced(consumer, weight, consumer.side, index, None, sliced)
    resize(consumer)
    unit.layout.shrink(model.get_submodule(path), kept, unit)


def _sliced(
    layer: Layer, parameter: Tensor, side: int, index: Tensor, scales: Tensor | None, done: _Sliced
) -> nn.Parameter:
    """The kept part of a parameter; one that two modules share is cut once and stays shared."""
    if id(parameter) not in done:
        part = layer.cut(parameter, index, side)
        if scales is not None:
            shape = [len(index) if place == side else 1 for place in range(part.ndim)]
            factors = scales.to(part.device, torch.promote_types(part.dtype, torch.float32)).view(shape)
            part = (part * factors).to(part.dtype)
        done[id(parameter)] = parameter, nn.Parameter(part, parameter.requires_grad)
    return done[id(parameter)][1]
