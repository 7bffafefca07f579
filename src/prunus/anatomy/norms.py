"""Norms over the channels of a unit: on queries and keys, on what the heads give, on hidden neurons.

A channel that is silent still counts in the width that a norm divides by. Root-mean-square norms are cut exactly by their weights and ε.
Layer norms take off a mean, so that they also give something where a channel is silent: gates act behind them, too, and once narrow they
go on dividing by the dense width, as norms without weights do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from prunus.anatomy.forwards import take_own_forward
from prunus.anatomy.layers import Site
from prunus.anatomy.trial import trial_numbers, without_hooks

EPSILONS = ("eps", "variance_epsilon", "epsilon")
"""Attributes that hold the ε of a norm."""


@dataclass(frozen=True)
class Norm:
    """A norm over the channels of one head, of all heads, or of all hidden neurons."""

    path: str
    is_weightless: bool = False
    """It has no weight, so that what it loses goes to the output layer."""
    is_centred: bool = False
    """It takes off the mean."""
    is_wide: bool = False
    """It has no weight, and its mean is still over the dense width once it is narrow."""
    offset: float = 0.0
    """It multiplies by weight + offset."""

    def site(self, module: nn.Module, width: int) -> Site:
        """Its weights and biases; width: features of one repeat."""
        own = module.get_submodule(self.path)._parameters
        weight = own["weight"]
        assert weight is not None
        features = sum(p.numel() // p.shape[-1] for p in own.values() if p is not None)
        return Site(self.path, weight.shape[-1] // width, features, weight.ndim - 1)

    def refit(self, weight: Tensor, share: float) -> Tensor:
        """Weights of a root-mean-square norm that make up for a mean of squares over fewer channels: it is larger by the share that left."""
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return wide.add(self.offset).mul(share**-0.5).sub(self.offset).to(weight.dtype)

    def shrink(self, module: nn.Module, before: int, after: int, features: int) -> None:
        """Makes it compute with fewer channels.

        Args:
            module: the unit's.
            before: channels until now; after: those that stay.
            features: that it was over until now, where it has no weight to tell.
        """
        norm: Any = module.get_submodule(self.path)
        shape = getattr(norm, "normalized_shape", None)
        if isinstance(shape, tuple):
            features = shape[-1]
            norm.normalized_shape = (*shape[:-1], features * after // before)
        if self.is_centred or self.is_wide:
            vars(norm).setdefault("_dense_width", features)
            take_own_forward(norm, layer_norm if self.is_centred else root_mean_square_norm)
            return
        # ε is added to a mean over fewer channels, so it grows with it; reckoned from what it was at first, so that two cuts are one
        name = epsilon(norm) or ""
        first, width = vars(norm).setdefault("_dense_epsilon", (getattr(norm, name), before))
        setattr(norm, name, first * width / after)


class NormSites(TypedDict):
    """The fields of `Sites` that are norms."""

    norms: tuple[Site, ...]
    centred: tuple[Site, ...]


def layer_norm(module: Any, hidden_states: Tensor) -> Tensor:
    """A layer norm as if the channels that left were there and zero; hidden_states: (…, channels)."""
    width: int = module._dense_width
    x = hidden_states.float()
    mean = x.sum(-1, keepdim=True) / width
    centred = x - mean
    left = width - x.shape[-1]
    variance = (centred.square().sum(-1, keepdim=True) + left * mean.square()) / width
    found: Tensor = centred * torch.rsqrt(variance + getattr(module, epsilon(module) or "")) * module.weight
    bias = getattr(module, "bias", None)
    found = found if bias is None else found + bias
    return found.type_as(hidden_states)


def root_mean_square_norm(module: Any, hidden_states: Tensor) -> Tensor:
    """A root-mean-square norm without weights as if the channels that left were there and zero; hidden_states: (…, channels)."""
    x = hidden_states.float()
    mean = x.square().sum(-1, keepdim=True) / module._dense_width
    found: Tensor = x * torch.rsqrt(mean + getattr(module, epsilon(module) or ""))
    return found.type_as(hidden_states)


def norms_in(modules: Iterable[tuple[str, nn.Module | None]]) -> Iterator[tuple[str, nn.Module, Tensor | None]]:
    """Path, module and weight of every norm among modules; other parameters than weight and bias make none."""
    for path, module in modules:
        if module is None or "Norm" not in type(module).__name__ or not epsilon(module):
            continue
        own = {name: p for name, p in module._parameters.items() if p is not None}
        if own.keys() <= {"weight", "bias"} and ("weight" in own or not own):
            yield path, module, own.get("weight")


def weighted(path: str, module: nn.Module, weight: Tensor) -> Norm:
    """What a norm with weights does, found by running a copy; one that was narrowed says it."""
    if "_dense_width" in vars(module):
        return Norm(path, is_centred=True)
    x = torch.randn(1, 1, *weight.shape, generator=torch.Generator().manual_seed(0), device="cpu", dtype=torch.float32)
    with trial_numbers():
        silent, plain, moved = (_answer(module, fill, given) for fill, given in ((0.0, x), (1.0, x), (1.0, x + 1)))
    if plain is None or moved is None or silent is None:
        return Norm(path)
    return Norm(path, is_centred=torch.allclose(plain, moved, atol=1e-3), offset=float(silent.abs().max() > 0))


def _answer(norm: nn.Module, fill: float, x: Tensor) -> Tensor | None:
    """What it gives with all its weights alike and no bias."""
    copy: Any = without_hooks(norm)
    vars(copy)["_parameters"] = {
        name: None if p is None else torch.full(p.shape, fill if name == "weight" else 0.0)
        for name, p in norm._parameters.items()
    }
    try:
        found = copy(x)
    except Exception:  # a stranger's forward may raise anything; the trial of the unit says whether it matters
        return None
    return found if isinstance(found, Tensor) else None


def sites_of(norms: Sequence[Norm], module: nn.Module, width: int) -> NormSites:
    """The sites of a unit that are norms."""
    with_weights = [norm for norm in norms if not (norm.is_weightless or norm.is_wide)]
    plain, centred = (
        tuple(n.site(module, width) for n in with_weights if n.is_centred is sort) for sort in (False, True)
    )
    return {"norms": plain, "centred": centred}


def epsilon(norm: nn.Module) -> str | None:
    """The attribute that holds its ε."""
    return next((name for name in EPSILONS if isinstance(getattr(norm, name, None), float)), None)
