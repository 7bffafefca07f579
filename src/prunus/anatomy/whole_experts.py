"""Experts that leave as a whole, with what the router holds of them: a channel is one expert of a layer.

A layout counts if a trial proves it: a few small experts with random weights, of which the router never takes some, compute the
same without those.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from types import MethodType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunus.anatomy.alike import Verdicts
from prunus.anatomy.blocks import StandIn
from prunus.anatomy.cutting import cut
from prunus.anatomy.experts import Experts
from prunus.anatomy.layers import Site
from prunus.anatomy.layouts import Layout, Sites
from prunus.anatomy.trial import NEURONS, MisfitError, trial_numbers, without_hooks

INSIDE = "experts"
"""What a block calls the module that holds its experts."""
COUNTS = re.compile(r"(?:num|n)_(?:\w+_)?experts|out_features")
"""Attributes that hold how many experts there are."""
CHOSEN = re.compile(r"top_?k|num_experts_per_tok(?:en)?|moe_(?:top_?)?k")
"""Attributes that hold how many of them a token is sent to."""
NEVER = -1e4
"""What a router says of experts that no token is sent to."""
_FOUND = Verdicts[str]()
"""Why experts cannot leave as a whole; empty where they can."""


@dataclass(frozen=True)
class WholeExperts(Layout):
    """A block whose experts lie in one module and whose router lies beside it."""

    is_attention: ClassVar[bool] = False
    experts: Experts
    """How the experts are stored."""
    name: str = field(default="whole_experts", kw_only=True)
    kind: str = field(default="whole_experts", kw_only=True)

    def sites(self, module: nn.Module) -> Sites:
        count = _count(self, module)
        chosen = _chosen(module, count)
        if count <= chosen:
            raise MisfitError(f"it has {count} experts and sends every token to {chosen}")
        found = _sites(self, module, count)
        why = _FOUND.of(self, module, partial(_objection, self, module))
        if why:
            raise MisfitError(why)
        return found

    def shrink(self, module: nn.Module, kept: Tensor, before: Sites) -> None:
        for part in _routing(module, len(kept)):
            _resize(part, COUNTS, before.channels, len(kept))


def _count(layout: WholeExperts, module: nn.Module) -> int:
    return len(module.get_submodule(INSIDE).get_parameter(layout.experts.down))


def _chosen(module: nn.Module, count: int) -> int:
    """How many experts a token is sent to, as far as the block says it."""
    said = (value for part in _routing(module, count) for name, value in vars(part).items() if CHOSEN.fullmatch(name))
    return max((value for value in said if type(value) is int), default=1)


def _routing(module: nn.Module, count: int) -> Iterator[nn.Module]:
    """The block itself, its experts, and those of its other parts whose matrices say something of each of so many experts."""
    yield module
    yield module.get_submodule(INSIDE)
    for name, child in module._modules.items():
        if child is not None and name != INSIDE and all(count in p.shape for p in child.parameters() if p.ndim > 1):
            yield from child.modules()


def _sites(layout: WholeExperts, module: nn.Module, count: int) -> Sites:
    """Every tensor that holds something of each expert, those of the experts themselves last."""
    paths = {id(part): path for path, part in module.named_modules()}
    inside, found = module.get_submodule(INSIDE), list[Site]()
    for part in sorted(_routing(module, count), key=lambda one: one is inside):
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            side = None if tensor is None else _side(tensor, count, part is inside)
            if tensor is not None and side is not None:
                features = tensor.numel() // count if name in part._parameters else 0
                found.append(Site(f"{paths[id(part)]}.{name}".removeprefix("."), 1, features, side))
    return Sites(
        producers=tuple(found[:-1]), consumer=found[-1], channels=count, sliced=True, least=_chosen(module, count)
    )


def _side(tensor: Tensor, count: int, is_inside: bool) -> int | None:
    """The dimension of a tensor along which the experts lie."""
    sides = [side for side, size in enumerate(tensor.shape) if size == count]
    return sides[0] if sides and (sides[0] == 0 or not is_inside) else None


@trial_numbers()
def _objection(layout: WholeExperts, module: nn.Module) -> str:
    """What a trial says against it; nothing where experts can leave."""
    count = _chosen(module, _count(layout, module)) + 3
    going = torch.tensor([0, count - 2])
    kept = torch.tensor([expert for expert in range(count) if expert not in going])
    try:
        (whole, x), (masked, _), (narrow, _) = (_sample(layout, module, count, lost) for lost in ((), going, going))
        cut(narrow, layout, _sites(layout, narrow, count), kept, {})
        dense, expected, found = (_first(one(x)) for one in (whole, masked, narrow))
    except Exception as error:  # a stranger's forward may raise anything
        return f"a trial run of its block failed ({type(error).__name__}: {error})"
    if torch.allclose(dense, expected, atol=1e-5):
        return "what a trial run of its block gives does not depend on single experts"
    is_same = expected.shape == found.shape and torch.allclose(expected, found, atol=1e-5)
    return "" if is_same else "a trial run of its block is not the same without experts that no token is sent to"


def _first(given: Any) -> Tensor:
    while not isinstance(given, Tensor):
        given = given[0]
    return given


def _sample(layout: WholeExperts, module: nn.Module, count: int, going: Any) -> tuple[nn.Module, Tensor]:
    """A copy with so many small experts and random weights, none of whose tokens are sent to those that go, and tokens for it."""
    generator = torch.Generator().manual_seed(0)
    before, stored = _count(layout, module), layout.experts.sites(module.get_submodule(INSIDE))
    up, down = stored.producers[0], stored.consumer
    sides = {up.linear: up.side, f"{up.linear}_bias": 1, down.linear: down.side}
    copy = without_hooks(module)
    inside: Any = copy.get_submodule(INSIDE)
    parts = list(_routing(copy, before))
    for part in parts:
        state: dict[str, Tensor | None] = {**part._parameters, **part._buffers}
        for name, tensor in state.items():
            if tensor is None or not tensor.is_floating_point():
                continue
            shape, side = list(tensor.shape), _side(tensor, before, part is inside)
            if part is inside and name in sides:
                shape[sides[name]] = shape[sides[name]] // stored.channels * NEURONS
            if side is not None:
                shape[side] = count
            spread = shape[-1] ** -0.5 if len(shape) > 1 else 0.5 if part is inside else 0.01  # what is added to scores
            state[name] = value = torch.randn(shape, generator=generator) * spread
            if side is not None and part is not inside:
                _never(value, side, going)
        vars(part)["_parameters"] = {name: state[name] for name in part._parameters}
        vars(part)["_buffers"] = {name: state[name] for name in part._buffers}
        _resize(part, COUNTS, before, count)
    _resize(inside, re.compile("|".join(layout.experts.sizes)), stored.channels, NEURONS)
    stock = getattr(type(inside).forward, "__wrapped__", None)
    if stock is not None:  # no kernel, which may want aligned widths
        inside.forward = MethodType(stock, inside)
    known = {id(part) for part in parts}
    for name, child in copy._modules.items():
        if child is not None and id(child) not in known and any(p.ndim > 1 for p in child.parameters()):
            copy._modules[name] = StandIn(1)
    x = torch.randn(
        2, 16, module.get_submodule(INSIDE).get_parameter(up.linear).shape[3 - up.side], generator=generator
    )
    x[..., 0] = 1
    return copy, x


def _resize(part: nn.Module, names: re.Pattern[str], before: int, after: int) -> None:
    """Makes the attributes of these names that hold one number hold another."""
    for name, size in list(vars(part).items()):
        if type(size) is int and size == before and names.fullmatch(name):
            setattr(part, name, after)


def _never(value: Tensor, side: int, going: Any) -> None:
    """Makes a router never send a token, of which the first feature is one, to some experts."""
    by_expert = value.movedim(side, 0)
    if value.ndim == 2 and value.shape[1 - side] > 1:
        by_expert[:, 0] = 0
        by_expert = by_expert[:, :1]
    for expert in going:
        by_expert[expert] = NEVER
