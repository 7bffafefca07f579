"""MLPs of types that nobody has named: those whose layers lie in a block beside its other parts, as in BERT and BART, and those that
have the shapes of one, whatever their layers are called.

They count only if a trial proves it: a copy of the module, with a handful of hidden neurons, random weights and stand-ins for
attentions and the like, gives the same without neurons that are silent.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunus.anatomy.alike import Verdicts
from prunus.anatomy.layouts import Layout, Mlp, Proposal, Sites
from prunus.anatomy.trial import NEURONS, MisfitError, trial_numbers, without_hooks

SILENT = 2
"""Of the hidden neurons of a trial."""
_FOUND = Verdicts[str]()
"""Why a layout does not describe a block; empty where it does."""


@dataclass(frozen=True)
class CutMlp(Mlp):
    """A guess at an MLP, which counts if a trial finds it the same once it is cut."""

    is_tried: ClassVar[bool] = True

    def sites(self, module: nn.Module) -> Sites:
        found = super().sites(module)
        why = _FOUND.of(self, module, partial(_objection, self, module))
        if why:
            raise MisfitError(why)
        return found


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
        layers = {path: part for path, part in module.named_modules() if isinstance(part, nn.Linear)}
        if hasattr(module, "base_layer"):  # the two layers of an adapter are none
            return
        if len(layers) not in (2, 3) or sum(p.ndim > 1 for p in module.parameters()) != len(layers):
            return
        first = {path.partition(".")[0] for path in layers}
        if len(first) == 1 and not type(module.get_submodule(first.pop())).__module__.startswith("torch."):
            return
        for down in list(layers)[:0:-1]:  # not the first
            ups, width = [path for path in layers if path != down], layers[down].in_features
            if all(layers[path].out_features == width for path in ups):
                yield CutMlp(ups[-1], down, gate=ups[0] if len(ups) == 2 else None)
            elif len(ups) == 1 and layers[ups[0]].out_features == 2 * width:
                yield CutMlp(ups[0], down, gate=ups[0])


def _objection(layout: Mlp, module: nn.Module) -> str:
    """What a trial says against a layout."""
    why = ""
    with trial_numbers():
        for form, fill in product(range(len(FORMS)), (None, 0.5)):
            try:
                whole, masked, narrow = (
                    _output(_sample(layout, module, form, silent, width), layout, fill)
                    for silent, width in ((0, NEURONS), (SILENT, NEURONS), (SILENT, NEURONS - SILENT))
                )
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


def _sample(layout: Mlp, module: nn.Module, form: int, silent: int, width: int) -> nn.Module:
    """A copy with random weights, of whose neurons the last are silent and the first `width` are there."""
    generator = torch.Generator().manual_seed(0)
    copy = without_hooks(module)
    ups = tuple(dict.fromkeys(filter(None, (layout.up, layout.gate))))
    neuron = torch.arange(2 * NEURONS if layout.gate == layout.up else NEURONS) % NEURONS
    _replace(copy, "", (*ups, layout.down), form)
    for path, part in copy.named_modules():
        known: dict[str, Tensor | None] = {}
        for name, parameter in part._parameters.items():
            if parameter is None:
                known[name] = None
                continue
            shape = list(parameter.shape)
            if path in ups:
                shape[0] = len(neuron)
            elif path == layout.down and name == "weight":
                shape[1] = NEURONS
            value = torch.randn(shape, generator=generator) * (shape[1] ** -0.5 if len(shape) > 1 else 0.5)
            if path in ups:
                value[neuron >= NEURONS - silent] = 0
                value = value[neuron < width]
            elif path == layout.down and name == "weight":
                value = value[:, :width]
            known[name] = value
        vars(part)["_parameters"] = known
        vars(part)["_buffers"] = {
            n: None if b is None else torch.zeros(b.shape, dtype=b.dtype) for n, b in part._buffers.items()
        }
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
    x = torch.randn(1, 3, width, generator=generator)
    asked = list(inspect.signature(type(block).forward).parameters.values())[1:]
    others = [p.name for p in asked[1:] if p.default is inspect.Parameter.empty and p.kind.value in (1, 3)]
    found = block(x, **dict.fromkeys(others, None if fill is None else x * fill))
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
