"""Experts whose weights lie in one parameter for all of them, as transformers keeps them: a channel is one hidden neuron of every expert."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunus.anatomy.alike import Verdicts
from prunus.anatomy.forwards import experts_of_any_width, take_own_forward
from prunus.anatomy.layers import Site
from prunus.anatomy.layouts import Layout, Sites
from prunus.anatomy.trial import NEURONS, MisfitError, trial_numbers, without_hooks

EXPERTS_OF_TRIAL, TOKENS_OF_TRIAL = 3, 4
_FOUND = Verdicts[str]()
"""Why silenced neurons may not be cut out; empty where they may."""


@dataclass(frozen=True)
class Experts(Layout):
    """All experts of a layer. The kernels that multiply them together want one hidden width, so they lose the same number of
    neurons, at the same places.

    The parameters are (experts, rows, columns), with a bias (experts, rows) under the name with `_bias`. How they are stored the
    module says: `is_transposed`, and `is_concatenated` where gates come before ups, else in turns.
    """

    is_attention: ClassVar[bool] = False
    up: str = "gate_up_proj"
    """Parameter of the layers that make the hidden neurons; gate and up in one where there are gates."""
    down: str = "down_proj"
    """Parameter of the layers that read them."""
    gated: bool = True
    kind: str = field(default="experts", kw_only=True)
    transposed: bool | None = field(default=None, kw_only=True)
    """Whether each matrix is stored as (inputs, outputs); None where the module says it."""
    batched: bool = field(default=False, kw_only=True)
    """The module is given the tokens of all experts, one expert's after the other's, and routes nothing."""
    sizes: tuple[str, ...] = field(default=("intermediate_dim", "intermediate_size", "expert_dim"), kw_only=True)
    """Attributes that hold the hidden width, those of them that the module has."""

    def resembles(self, module: nn.Module) -> bool:
        """Whether a module has such parameters and says how it stores them."""
        own = module._parameters
        return all(isinstance(own.get(name), Tensor) and own[name].ndim == 3 for name in (self.up, self.down)) and (  # type: ignore[union-attr]
            isinstance(getattr(module, "is_transposed", None), bool) and getattr(module, "has_gate", None) is self.gated
        )

    def stores_transposed(self, module: nn.Module) -> bool:
        """Whether a module stores each matrix as (inputs, outputs)."""
        return bool(getattr(module, "is_transposed", False) if self.transposed is None else self.transposed)

    def takes_turns(self, module: nn.Module) -> bool:
        """Whether the rows of gate and up alternate."""
        return self.gated and not getattr(module, "is_concatenated", True)

    def sites(self, module: nn.Module) -> Sites:
        up, down = module.get_parameter(self.up), module.get_parameter(self.down)
        side = 2 if self.stores_transposed(module) else 1
        experts, channels, folds = len(up), down.shape[3 - side], 2 if self.gated else 1
        if up.shape[side] != folds * channels or len(down) != experts:
            raise MisfitError("the parameters of its experts disagree on the hidden width")
        in_turns = self.takes_turns(module)
        order = tuple(row // 2 for row in range(2 * channels)) if in_turns else ()
        has_bias = module._parameters.get(f"{self.up}_bias") is not None
        repeats = experts if in_turns else experts * folds
        why = _FOUND.of(self, module, partial(_objection, self, module))
        if why:
            raise MisfitError(why)
        return Sites(
            producers=(Site(self.up, repeats, up.shape[3 - side] + has_bias, side, order),),
            consumer=Site(self.down, experts, down.shape[side], 3 - side), channels=channels,
        )  # fmt: skip

    def shrink(self, module: nn.Module, kept: Tensor, before: Sites) -> None:
        for name in self.sizes:
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, len(kept))
        if hasattr(type(module).forward, "__wrapped__"):  # it chooses among kernels
            take_own_forward(module, experts_of_any_width)


def _objection(layout: Experts, module: nn.Module) -> str:
    """What a few small experts with random weights say against it that silenced neurons are cut out; nothing where they may be."""
    try:
        with trial_numbers():
            whole, small = (_tried(layout, module, width) for width in (NEURONS, NEURONS - 2))
            proved = torch.allclose(whole, small, atol=1e-5)
    except Exception as error:  # a stranger's forward may raise anything
        return f"a trial run of it failed ({type(error).__name__}: {error})"
    return "" if proved else "a trial run of its experts is not the same without neurons that are silent"


def _tried(layout: Experts, module: nn.Module, width: int) -> Tensor:
    """What a few experts give whose neurons are silent from NEURONS - 2 on, of which the first `width` are there."""
    copy: Any = without_hooks(module)
    generator = torch.Generator().manual_seed(0)
    transposed, rows = layout.stores_transposed(module), (2 if layout.gated else 1) * NEURONS
    side = 2 if transposed else 1
    neuron = torch.arange(rows) // 2 if layout.takes_turns(module) else torch.arange(rows) % NEURONS
    speaks, stays = neuron < NEURONS - 2, neuron < width
    inner, outer = module.get_parameter(layout.up).shape[3 - side], module.get_parameter(layout.down).shape[side]
    up = torch.randn(EXPERTS_OF_TRIAL, rows, inner, generator=generator) / inner**0.5
    down = torch.randn(EXPERTS_OF_TRIAL, outer, NEURONS, generator=generator)[:, :, :width]
    up = (up * speaks[:, None])[:, stays]
    biases = {
        layout.up: (torch.randn(EXPERTS_OF_TRIAL, rows, generator=generator) * speaks)[:, stays],
        layout.down: torch.randn(EXPERTS_OF_TRIAL, outer, generator=generator),
    }
    for name, weight in ((layout.up, up), (layout.down, down)):
        copy._parameters[name] = (weight.transpose(1, 2) if transposed else weight).contiguous()
        if copy._parameters.get(f"{name}_bias") is not None:
            copy._parameters[f"{name}_bias"] = biases[name]
    for part in copy.modules():
        if part is not copy:  # norms after each expert
            own = {name: None if p is None else torch.ones(p.shape) for name, p in part._parameters.items()}
            vars(part)["_parameters"] = own
    for name, size in {"num_experts": EXPERTS_OF_TRIAL, **dict.fromkeys(layout.sizes, width)}.items():
        if isinstance(getattr(copy, name, None), int):
            setattr(copy, name, size)
    tokens = torch.randn(TOKENS_OF_TRIAL * EXPERTS_OF_TRIAL, inner, generator=generator)
    first = torch.arange(len(tokens)) % EXPERTS_OF_TRIAL
    routed = (torch.stack([first, (first + 1) % EXPERTS_OF_TRIAL], 1), torch.rand(len(tokens), 2, generator=generator))
    forward = getattr(type(copy).forward, "__wrapped__", type(copy).forward)  # no kernel, which may want aligned widths
    found: Tensor = forward(copy, tokens, *(() if layout.batched else routed))
    return found
