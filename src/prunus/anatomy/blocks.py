"""MLPs of types that nobody has named: those whose layers lie in a block beside its other parts, as in BERT and BART, and those that
have the shapes of one, whatever their layers are called.

They count only if a trial proves it: a copy of the module, with a handful of hidden neurons, random weights and stand-ins for
attentions and the like, gives the same without neurons that are silent.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, product
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunus.anatomy.alike import Verdicts
from prunus.anatomy.arguments import PLANE, TOKENS
from prunus.anatomy.cutting import cut, silence
from prunus.anatomy.layouts import Layout, Mlp, Proposal, Sites
from prunus.anatomy.norms import Norm, norms_in, sites_of, weighted
from prunus.anatomy.trial import NEURONS, MisfitError, trial_numbers, without_hooks

SILENT = 2
"""Of the hidden neurons of a trial."""
PLANE_OF_TRIAL = (2, 2)
"""Height and width of the image that the tokens of a trial are, where that is asked."""
_FOUND = Verdicts[str]()
"""Why a layout does not describe a block; empty where it does."""


@dataclass(frozen=True)
class CutMlp(Mlp):
    """A guess at an MLP, which counts if a trial finds it the same once it is cut."""

    is_tried: ClassVar[bool] = True
    norms: tuple[Norm, ...] = field(default=(), kw_only=True)
    """Over the hidden neurons."""

    def sites(self, module: nn.Module) -> Sites:
        found = self.untried(module)
        why = _FOUND.of(self, module, partial(_objection, self, module))
        if why:
            raise MisfitError(why)
        return found

    def untried(self, module: nn.Module) -> Sites:
        """The sites of a module, if the guess is right.

        Raises:
            MisfitError: it has no such layers.
        """
        found = super().sites(module)
        return replace(found, **sites_of(self.norms, module, found.channels))

    def refit(self, norm: str, weight: Tensor, share: float) -> Tensor:
        return next(known for known in self.norms if known.path == norm).refit(weight, share)

    def shrink(self, module: nn.Module, kept: Tensor, before: Sites) -> None:
        for norm in self.norms:
            norm.shrink(module, before.channels, len(kept), before.channels)


@dataclass(frozen=True)
class BlockMlp(CutMlp):
    """One whose layers, of these names, lie in a block beside others."""

    name: str = field(default="mlp", kw_only=True)

    def resembles(self, module: nn.Module) -> bool:
        """Whether a module has layers of these names beside others, so that a trial is worth its while."""
        own = {self.up.partition(".")[0], self.down.partition(".")[0]}
        if not own <= module._modules.keys() or not (_has(module, self.up) and _has(module, self.down)):
            return False
        others = (child for name, child in module._modules.items() if child is not None and name not in own)
        return any(True for child in others for _ in child.parameters())


@dataclass(frozen=True)
class MlpByShape(Proposal):
    """Whatever has two linear layers, or three, of which one reads what the others make, and no other matrix."""

    is_attention: ClassVar[bool] = False
    lacks: ClassVar[str] = "it has no layers that make an MLP"

    def resembles(self, module: nn.Module) -> bool:
        """Whether a module has such layers, and no module in it that can be looked at by itself has them all."""
        return any(True for _ in self.candidates(module))

    def candidates(self, module: nn.Module) -> Iterator[Layout]:
        if hasattr(module, "base_layer"):  # the two layers of an adapter are none
            return
        linear = ((path, part) for path, part in module.named_modules() if isinstance(part, nn.Linear))
        layers = dict(islice(linear, 4))
        if len(layers) not in (2, 3) or sum(p.ndim > 1 for p in module.parameters()) != len(layers):
            return
        if any(layer._parameters.keys() - {"weight", "bias"} for layer in layers.values()):
            return
        first = {path.partition(".")[0] for path in layers}
        if len(first) == 1 and not type(module.get_submodule(first.pop())).__module__.startswith("torch."):
            return
        for down in list(layers)[:0:-1]:  # not the first
            ups, width = [path for path in layers if path != down], layers[down].in_features
            norms = tuple(
                weighted(path, norm, weight)
                for path, norm, weight in norms_in(module.named_modules())
                if weight is not None and weight.shape == (width,)
            )
            for over in (norms, ()) if norms else ((),):
                if all(layers[path].out_features == width for path in ups):
                    yield CutMlp(ups[-1], down, gate=ups[0] if len(ups) == 2 else None, norms=over)
                elif len(ups) == 1 and layers[ups[0]].out_features == 2 * width:
                    yield CutMlp(ups[0], down, gate=ups[0], norms=over)


def _objection(layout: CutMlp, module: nn.Module) -> str:
    """What a trial says against a layout."""
    why, kept = "", torch.arange(NEURONS - SILENT, device="cpu")
    with trial_numbers():
        for form, fill in product(range(len(FORMS)), (None, 0.5)):
            try:
                samples = [_sample(layout, module, form) for _ in range(3)]
                sites = layout.untried(samples[0])
                silence(samples[1], sites, kept)
                cut(samples[2], layout, sites, kept, {})
                whole, masked, narrow = (_output(sample, layout, fill) for sample in samples)
            except Exception as error:  # a stranger's forward may raise anything
                why = why or f"a trial run of it failed ({type(error).__name__}: {error})"
                continue
            if masked.shape == narrow.shape and torch.allclose(masked, narrow, atol=1e-5):
                if torch.allclose(whole, masked, atol=1e-3):
                    return "what a trial run of it gives does not depend on its hidden neurons"
                return ""
            why = "a trial run of it, narrowed, does not give what the masked one gives"
    return why


FORMS = (lambda x: (x, None), lambda x: x, lambda x: (x, None, None))
"""What an attention may give."""


class StandIn(nn.Module):
    """In place of an attention or anything else that has matrices."""

    def __init__(self, form: int):
        super().__init__()
        self.form = form

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        return FORMS[self.form](given * 0.5 + 0.1)


def _sample(layout: CutMlp, module: nn.Module, form: int) -> nn.Module:
    """A copy with random weights and a handful of hidden neurons."""
    generator = torch.Generator().manual_seed(0)
    copy = without_hooks(module)
    ups = tuple(dict.fromkeys(filter(None, (layout.up, layout.gate))))
    over = tuple(norm.path for norm in layout.norms)
    _replace(copy, "", (*ups, layout.down), form)
    for path, part in copy.named_modules():
        known: dict[str, Tensor | None] = {}
        for name, parameter in part._parameters.items():
            if parameter is None:
                known[name] = None
                continue
            shape = list(parameter.shape)
            if path in ups or path in over:
                shape[0] = 2 * NEURONS if path == layout.up == layout.gate else NEURONS
            elif path == layout.down and name == "weight":
                shape[1] = NEURONS
            known[name] = torch.randn(shape, generator=generator) * (shape[1] ** -0.5 if len(shape) > 1 else 0.5)
        vars(part)["_parameters"] = known
        vars(part)["_buffers"] = {
            n: None if b is None else torch.zeros(b.shape, dtype=b.dtype) for n, b in part._buffers.items()
        }
        if isinstance(part, nn.Linear):
            part.out_features, part.in_features = known["weight"].shape  # type: ignore[union-attr]
        if path in over and isinstance(part, nn.LayerNorm | nn.RMSNorm):
            part.normalized_shape = (NEURONS,)
    return copy


def _replace(module: nn.Module, prefix: str, kept: tuple[str, ...], form: int) -> None:
    """Puts stand-ins where parts have matrices that are not the MLP's."""
    for name, child in module._modules.items():
        path = f"{prefix}{name}"
        if child is None or path in kept:
            continue
        if any(one.startswith(f"{path}.") for one in kept):
            _replace(child, f"{path}.", kept, form)
        elif any(parameter.ndim > 1 for parameter in child.parameters()):
            module._modules[name] = StandIn(form)


def _output(block: nn.Module, layout: Mlp, fill: float | None) -> Tensor:
    """The first tensor that a run gives."""
    generator = torch.Generator().manual_seed(1)
    width = block.get_submodule(layout.up)._parameters["weight"].shape[1]  # type: ignore[union-attr]
    asked = list(inspect.signature(type(block).forward).parameters.values())[1:]
    others = [p.name for p in asked[1:] if p.default is inspect.Parameter.empty and p.kind.value in (1, 3)]
    x = torch.randn(1, math.prod(PLANE_OF_TRIAL) if PLANE in others else TOKENS, width, generator=generator)
    given: dict[str, Any] = dict.fromkeys(others, None if fill is None else x * fill)
    found = block(x, **(given | {PLANE: PLANE_OF_TRIAL} if PLANE in others else given))
    return next(_tensors(found))


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, tuple | list):
        for one in found:
            yield from _tensors(one)


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True
