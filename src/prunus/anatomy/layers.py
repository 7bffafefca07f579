"""The linear maps of a unit, whichever way their weights are stored: as linear layers, as `Conv1D`, as all experts in one parameter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Linear: TypeAlias = nn.Linear | Conv1D
"""Layers that hold one linear map."""


@dataclass(frozen=True)
class Site:
    """One linear map of a unit. Along the narrowed side its features are ordered (repeats, span, channels), or as `order` says."""

    linear: str
    """Path relative to the unit's module, of a layer or of a parameter that holds all experts."""
    repeats: int
    """Heads of an attention's layer (all of q, k and v where they are fused); 1 in an MLP, 2 where up and gate are fused; as many
    times more as a parameter holds experts."""
    features: int
    """Parameters per narrowed feature: fan-in plus bias for a producer, fan-out for the consumer."""
    side: int = 0
    """Dimension of its weight along which the channels lie."""
    order: tuple[int, ...] = ()
    """The channel of every feature of one repeat, where that is not (span, channels): rotary pairs that lie side by side, heads that are
    rotated in part."""


@dataclass(frozen=True, eq=False)
class Layer:
    """The weight and the bias of a site within a model."""

    owner: nn.Module
    """The module that computes with them."""
    name: str
    """Of the weight: `weight`, or that of a parameter with all experts, (experts, …, …)."""
    bias_name: str
    side: int
    """Dimension of the weight along which the channels lie."""

    @property
    def weight(self) -> nn.Parameter:
        """The parameter, as it is stored."""
        weight = self.owner._parameters.get(self.name)
        return getattr(self.owner, self.name) if weight is None else weight  # of what an adapter wraps since

    @property
    def bias(self) -> nn.Parameter | None:
        """Of the outputs, also where these are not what is narrowed."""
        return self.owner._parameters.get(self.bias_name)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Name within the owner → weight and bias."""
        both = {self.name: self.weight, self.bias_name: self.bias}
        return {name: parameter for name, parameter in both.items() if parameter is not None}

    @property
    def is_fused(self) -> bool:
        """Whether the weight holds all experts."""
        return self.weight.ndim == 3

    def of(self, owner: nn.Module) -> Layer:
        """The same of a copy of the owner."""
        return replace(self, owner=owner)

    def features(self, tensor: Tensor) -> Tensor:
        """A tensor of the weight's shape, such as its gradient, as (features, others): one row a narrowed feature."""
        if tensor.ndim == 1:  # of a norm
            return tensor[:, None]
        if tensor.ndim == 2:
            return tensor if self.side == 0 else tensor.T
        return tensor.movedim(self.side, 1).flatten(0, 1)

    def spread(self, values: Tensor, name: str) -> Tensor:
        """One value a feature, (features,), in a shape that multiplies the weight or the bias."""
        shape = list(self.parameters[name].shape)
        if len(shape) == self.weight.ndim:  # the bias of a norm, too
            kept = {self.side, 0} if self.is_fused else {self.side}
            shape = [size if place in kept else 1 for place, size in enumerate(shape)]
        return values.reshape(shape)

    def cut(self, parameter: Tensor, index: Tensor, side: int) -> Tensor:
        """The features `index` of a weight or bias along one of its sides. Every expert keeps the same ones."""
        if self.is_fused:
            index = index[: len(index) // self.weight.shape[0]]
        return parameter.index_select(side, index.to(parameter.device))


def layer_at(module: nn.Module, site: Site) -> Layer:
    """What a site names in a unit's module."""
    try:
        return Layer(module.get_submodule(site.linear), "weight", "bias", site.side)
    except AttributeError:
        path, _, name = site.linear.rpartition(".")
        return Layer(module.get_submodule(path), name, f"{name}_bias", site.side)


def inputs(layer: Linear) -> int:
    """Columns of the map."""
    return layer.in_features if isinstance(layer, nn.Linear) else int(layer.weight.shape[0])


def outputs(layer: Linear) -> int:
    """Rows of the map."""
    return layer.out_features if isinstance(layer, nn.Linear) else int(layer.weight.shape[1])


def resize(layer: Layer) -> None:
    """Makes a layer say the sizes that its weight has."""
    owner, shape = layer.owner, layer.weight.shape
    if isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = shape
    elif isinstance(owner, Conv1D):
        owner.nx, owner.nf = shape
