"""Surgery: making a model physically smaller from a plan.

Producers lose rows and biases, consumers lose columns. Head counts stay, and every head of a layer keeps the same
channels. The softmax scale of the original width is kept, so the narrowed model computes what the masked one did.
"""

from __future__ import annotations

import math
from types import MethodType

import torch
from torch import Tensor, nn

from prunus.anatomy import Anatomy, Unit, anatomy, linears
from prunus.anatomy.catalog import Attention, FusedAttention
from prunus.batches import input_device
from prunus.plan import Plan
from prunus.structured.attention import fused_attention, set_rotary_index

_Sliced = dict[int, tuple[Tensor, nn.Parameter]]
"""id of a parameter before → (the parameter, its kept part). Holding the first keeps its id from being reused."""


@torch.no_grad()
def narrow(model: nn.Module, parts: Anatomy, plan: Plan) -> None:
    """Applies a plan in place. Works on `meta` too, where it only changes shapes.

    Raises:
        PrunusError: the plan was made for another model.
    """
    plan.check(parts)
    for unit in parts:
        kept = plan.kept(unit)
        if len(kept) < unit.channels:
            sliced: _Sliced = {}
            for path in (unit.path, *unit.twins, *unit.mirrors):
                _narrow_unit(model, unit, path, kept, sliced)


def restore_rotations(model: nn.Module, plan: Plan) -> None:
    """Sets the column indices of narrowed rotary attentions again, which a loader's fresh buffers have lost.

    The indices are no weights: they follow from the plan, so no file holds them.
    """
    for unit in anatomy(model, plan.mirrors):
        if unit.name in plan.units and isinstance(unit.layout, Attention | FusedAttention) and unit.layout.rotary:
            unit_plan = plan.units[unit.name]
            kept = torch.tensor(unit_plan.kept)
            for path in (unit.path, *unit.twins, *unit.mirrors):
                module = model.get_submodule(path)
                if hasattr(module, "rotary_index"):
                    device = linears(model, unit, path)[0][1].weight.device
                    module.rotary_index = torch.cat([kept, kept + unit_plan.channels]).to(device)


def _narrow_unit(model: nn.Module, unit: Unit, path: str, kept: Tensor, sliced: _Sliced) -> None:
    module, layout = model.get_submodule(path), unit.layout
    *producers, consumer = linears(model, unit, path)
    width = len(kept) * unit.span
    folds = isinstance(layout, Attention) and layout.scale_follows_width
    for site, linear in producers:
        index = unit.feature_indices(site, kept)
        is_query = isinstance(layout, Attention) and site.linear == layout.query
        scale = math.sqrt(len(kept) / unit.channels) if folds and is_query else 1.0
        linear.weight = _sliced(linear.weight, 0, index, scale, sliced)
        if linear.bias is not None:
            linear.bias = _sliced(linear.bias, 0, index, scale, sliced)
        linear.out_features = len(index)
    site, linear = consumer
    index = unit.feature_indices(site, kept)
    linear.weight = _sliced(linear.weight, 1, index, 1.0, sliced)
    linear.in_features = len(index)

    if isinstance(layout, Attention):
        core = module.get_submodule(layout.core)
        setattr(core, layout.width, width)
        for total in layout.totals:
            setattr(core, total, width * unit.consumer.repeats)
    elif isinstance(layout, FusedAttention):
        setattr(module, layout.width, width)
        if layout.own_forward:
            module.forward = MethodType(fused_attention, module)
    if isinstance(layout, Attention | FusedAttention) and layout.rotary:
        index = torch.cat([kept, kept + unit.channels])
        set_rotary_index(module, index.to(input_device(module)))


def _sliced(parameter: Tensor, side: int, index: Tensor, scale: float, done: _Sliced) -> nn.Parameter:
    """The kept part of a parameter; one that two modules share is cut once and stays shared."""
    if id(parameter) not in done:
        part = parameter.index_select(side, index.to(parameter.device))
        part = part * scale if scale != 1 else part
        done[id(parameter)] = parameter, nn.Parameter(part, parameter.requires_grad)
    return done[id(parameter)][1]
