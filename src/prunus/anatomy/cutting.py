"""Cutting one module: producers lose rows and biases, consumers columns, norms over the channels their weights and biases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from prunus.anatomy.layers import Layer, Site, layer_at, resize
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
    if sites.sliced:
        _cut_slices(module, sites, kept, done)
        layout.shrink(module, kept, sites)
        return
    share = len(kept) / sites.channels
    for site in (*sites.producers, *sites.centred):
        layer = layer_at(module, site)
        index = sites.features_of(site, kept)
        scales, weight, bias = _scales(layout, site, sites, share, len(index)), layer.weight, layer.bias
        narrow = {layer.name: _sliced(layer, weight, layer.side, index, _times(scales, layer.side), done)}
        if bias is not None:
            narrow[layer.bias_name] = _sliced(layer, bias, bias.ndim - 1, index, _times(scales, bias.ndim - 1), done)
        layer.owner._parameters.update(narrow)
        resize(layer)
    for site in sites.norms:
        layer, refit = layer_at(module, site), partial(layout.refit, site.linear, share=share)
        index = sites.features_of(site, kept)
        layer.owner._parameters[layer.name] = _sliced(layer, layer.weight, layer.side, index, refit, done)
    site = sites.consumer
    layer, index = layer_at(module, site), sites.features_of(site, kept)
    change = _times(_scales(layout, site, sites, share, len(index)), layer.side)
    layer.owner._parameters[layer.name] = _sliced(layer, layer.weight, layer.side, index, change, done)
    resize(layer)
    layout.shrink(module, kept, sites)


def _cut_slices(module: nn.Module, sites: Sites, kept: Tensor, done: Cuts) -> None:
    """Keeps some slices of every parameter and buffer that is named; what two modules share stays shared."""
    for site in (*sites.producers, sites.consumer):
        path, _, name = site.linear.rpartition(".")
        owner = module.get_submodule(path)
        tensor: Tensor = getattr(owner, name)
        if name in owner._buffers:
            owner._buffers[name] = tensor.index_select(site.side, kept.to(tensor.device))
            continue
        if id(tensor) not in done:
            part = tensor.index_select(site.side, kept.to(tensor.device))
            done[id(tensor)] = tensor, nn.Parameter(part, tensor.requires_grad)
        owner._parameters[name] = done[id(tensor)][1]


def silence(module: nn.Module, sites: Sites, kept: Tensor) -> None:
    """Puts zeros where gates would: features of all channels but `kept`. For copies, which share their tensors with others."""
    gate = torch.zeros(sites.channels).index_fill_(0, kept, 1.0)
    for site in (*sites.producers, *sites.centred):
        mask(module, site, sites.spread(gate, site.repeats, site.order))


def mask(module: nn.Module, site: Site, values: Tensor) -> None:
    """Multiplies the features of a layer of a copy, (features,), weights and biases."""
    layer = layer_at(module, site)
    masked = {name: p * layer.spread(values, name) for name, p in layer.parameters.items()}
    vars(layer.owner)["_parameters"] = {**layer.owner._parameters, **masked}


def _scales(layout: Layout, site: Site, sites: Sites, share: float, features: int) -> Tensor | None:
    """By what each feature that stays is multiplied, (features,)."""
    of_repeats = layout.scales(site, sites, share)
    return None if of_repeats is None else of_repeats.repeat_interleave(features // site.repeats)


def _times(scales: Tensor | None, side: int) -> Callable[[Tensor], Tensor]:
    def multiplied(part: Tensor) -> Tensor:
        if scales is None:
            return part
        shape = [len(scales) if place == side else 1 for place in range(part.ndim)]
        factors = scales.to(part.device, torch.promote_types(part.dtype, torch.float32)).view(shape)
        return (part * factors).to(part.dtype)

    return multiplied


def _sliced(
    layer: Layer, parameter: Tensor, side: int, index: Tensor, change: Callable[[Tensor], Tensor], done: Cuts
) -> nn.Parameter:
    """The kept part of a parameter; one that two modules share is cut once and stays shared."""
    if id(parameter) not in done:
        part = change(layer.cut(parameter, index, side))
        done[id(parameter)] = parameter, nn.Parameter(part, parameter.requires_grad)
    return done[id(parameter)][1]
