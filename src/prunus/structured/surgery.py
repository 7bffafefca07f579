"""Surgery: making a model physically smaller from a plan.

Producers lose rows and biases, consumers lose columns. Head counts stay, and every head of a layer keeps the same
channels. The softmax scale of the original width is kept, so the narrowed model computes what the masked one did.
"""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import nn

from prunus.anatomy import Anatomy, Cuts, cut
from prunus.plan import Plan, mark


@torch.no_grad()
def narrow(model: nn.Module, parts: Anatomy, plan: Plan, copies: Container[str] = ()) -> None:
    """Applies a plan in place, and marks what it narrows. Works on `meta` too, where it only changes shapes.

    Args:
        copies: units that are marked as following others.

    Raises:
        PrunusError: the plan was made for another model.
    """
    plan.check(parts)
    for unit in parts.by_name.values():
        if unit.name not in plan.units:
            continue
        kept = plan.kept(unit)
        done: Cuts = {}
        for path in (unit.path, *unit.twins, *unit.mirrors):
            module = model.get_submodule(path)
            if len(kept) < unit.channels:
                cut(module, unit.layout, unit, kept, done)
            suffix = unit.name.removeprefix(unit.path)
            mark(module, suffix, plan.units[unit.name], copy=path != unit.path or unit.name in copies)
