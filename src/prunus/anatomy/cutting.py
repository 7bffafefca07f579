"""Cutting one module: producers lose rows and biases, consumers columns, norms over the channels their weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from prunus.anatomy.layouts import Layout, Sites

Cuts = dict[int, tuple[Tensor, nn.Parameter]]
"""id of a parameter before → (the parameter, its kept part). Holding the first keeps its id from being reused."""


@torch.no_grad()
def cut(module: nn.Module, layout: Layout, sites: Sites, kept: Tensor, done: Cuts) -> None:
    """Makes a module narrow in place.

    Args:
        sites: what the layout said of the module.
        kept: channels that stay, sorted, int64, on the CPU.
        done: parameters that were cut before, with whom others share them.
    """
    share = len(kept) / sites.channels
    for site in sites.producers:
        linear = module.get_submodule(site.linear)
        index, scaled = sites.features_of(site, kept), _times(layout.factor(site.linear, share))
        linear.weight = _sliced(linear.weight, 0, index, scaled, done)  # type: ignore[arg-type]
        if linear.bias is not None:
            linear.bias = _sliced(linear.bias, 0, index, scaled, done)  # type: ignore[arg-type]
        linear.out_features = len(index)  # type: ignore[assignment]
    for site in sites.norms:
        norm, refit = module.get_submodule(site.linear), partial(layout.refit, site.linear, share=share)
        norm.weight = _sliced(norm.weight, 0, sites.features_of(site, kept), refit, done)  # type: ignore[arg-type]
    site = sites.consumer
    linear = module.get_submodule(site.linear)
    index = sites.features_of(site, kept)
    linear.weight = _sliced(linear.weight, 1, index, _times(layout.factor(site.linear, share)), done)  # type: ignore[arg-type]
    linear.in_features = len(index)  # type: ignore[assignment]
    layout.shrink(module, kept, sites)


def _times(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda part: part * factor if factor != 1 else part


def _sliced(
    parameter: Tensor, side: int, index: Tensor, change: Callable[[Tensor], Tensor], done: Cuts
) -> nn.Parameter:
    """The kept part of a parameter; one that two modules share is cut once and stays shared."""
    if id(parameter) not in done:
        part = change(parameter.index_select(side, index.to(parameter.device)))
        done[id(parameter)] = parameter, nn.Parameter(part, parameter.requires_grad)
    return done[id(parameter)][1]
