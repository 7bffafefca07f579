"""Gates: the mask values ζ that multiply a unit's channels during search.

A gate multiplies the outputs of the unit's producers, after their bias: q, k and v of an attention before the scores,
the hidden layer of an MLP before its activation (UPop, section 3). It adds no parameter to the model, and multiplies
in place, so that it keeps no activation for the backward pass. Where a layer's outputs are many more than its weights, and a
backward pass will follow, its weights are multiplied instead, for the time of the call: (ζ W) x + ζ b is the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prunus.anatomy import Site, Sites, Unit, linears
from prunus.errors import PrunusError
from prunus.structured.scores import column_products

WORTHWHILE = 2
"""Outputs for each weight of a layer, from which on it is its weights that are multiplied."""


class GateHook:
    """Forward hook of one producer.

    Attributes:
        sites: how the channels lie in the layer.
        feature_gate: (features,), None while every gate is one.
        leaf: zeros (channels,) in whose `grad` `backward` leaves this layer's part of ∂L/∂ζ, whatever ζ is; None where nobody asks for it.
        is_saved: whether whoever saves the model saves the gates, too.
        followers: the same layer of momentum copies, which carry no gate of their own.
    """

    def __init__(self, sites: Sites, followers: tuple[nn.Linear, ...] = ()) -> None:
        self.sites = sites
        self.feature_gate: Tensor | None = None
        self.leaf: Tensor | None = None
        self.is_saved = False
        self.followers = followers

    def before(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Gives the layer weights that are gated already, for this call, where that is the smaller work."""
        if (
            self.feature_gate is None
            or self.leaf is not None
            or not torch.is_grad_enabled()
            or type(layer) is not nn.Linear
        ):
            return
        tokens = inputs[0].numel() // layer.in_features if inputs else 0
        if tokens < WORTHWHILE * layer.in_features or torch.compiler.is_compiling():
            return
        for name, parameter in layer._parameters.items():
            if parameter is not None:
                gate = self.feature_gate.to(parameter.device).view(-1, *[1] * (parameter.ndim - 1))
                layer.__dict__[name] = (parameter * gate).to(parameter.dtype)  # found before the parameter of that name

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor | None) -> Tensor | None:
        if "weight" in module.__dict__:
            for name in module._parameters:
                module.__dict__.pop(name, None)
            return output
        if output is None:  # after an error of the layer
            return None
        if self.feature_gate is None:
            return output if self.leaf is None else _gated(output, None, self, module)
        if self.feature_gate.device != output.device:  # a twin on another device, or a model that was moved
            self.feature_gate = self.feature_gate.to(output.device)
        if self.leaf is None or not torch.is_grad_enabled():
            return output.mul_(self.feature_gate)
        return _gated(output, self.feature_gate, self, module)


class _Gated(torch.autograd.Function):
    """y ↦ ζ ⊙ y, with a gradient for ζ, which is read off y and not off the weights: it is right for every ζ.

    It adds up as those of the weights do: where that of the layer's weight has been thrown away (`zero_grad`), so is this one.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, feature_gate: Tensor | None, leaf: Tensor, sites: Sites, layer: nn.Module
    ) -> Tensor:
        ctx.save_for_backward(output, feature_gate)
        ctx.leaf, ctx.sites, ctx.weight = leaf, sites, layer.weight
        return output.clone() if feature_gate is None else _scaled(output, feature_gate)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, Tensor, None, None]:
        output, feature_gate = ctx.saved_tensors
        if ctx.weight.requires_grad and ctx.weight.grad is None:
            ctx.leaf.grad = None
        of_features = column_products(output.reshape(-1, output.shape[-1]), slope.reshape(-1, slope.shape[-1]))
        of_channels = ctx.sites.gather(of_features).to(ctx.leaf.device)
        return slope if feature_gate is None else _scaled(slope, feature_gate), None, of_channels, None, None


def _gated(output: Tensor, feature_gate: Tensor | None, hook: GateHook, layer: nn.Module) -> Tensor:
    return cast(Tensor, _Gated.apply(output, feature_gate, hook.leaf, hook.sites, layer))  # type: ignore[no-untyped-call]


def _scaled(values: Tensor, feature_gate: Tensor) -> Tensor:
    return torch.mul(values, feature_gate, out=torch.empty_like(values))


class Gates:
    """The gates of a set of units, fp32, one value per channel, all one at first.

    Args:
        exact: whether every gate keeps its own gradient, until they settle. It costs the outputs that they multiply.
    """

    def __init__(self, model: nn.Module, units: Iterable[Unit], exact: bool = False):
        self._model = model
        self.values: dict[str, Tensor] = {}
        self._hooks: dict[str, list[tuple[Site, GateHook]]] = {}
        self._handles = []
        self._units = {unit.name: unit for unit in units}
        for unit in self._units.values():
            hooks = self._hooks[unit.name] = []
            copies = [linears(model, unit, path) for path in unit.mirrors]
            for path in (unit.path, *unit.twins):
                for place, (site, linear) in enumerate(linears(model, unit, path)[:-1]):
                    hook = GateHook(unit, tuple(copy[place][1] for copy in copies))
                    self._handles.append(linear.register_forward_pre_hook(hook.before))
                    self._handles.append(linear.register_forward_hook(hook, always_call=True))
                    hooks.append((site, hook))
            device = linears(model, unit)[0][1].weight.device
            self.values[unit.name] = torch.ones(unit.channels, dtype=torch.float32, device=device, requires_grad=exact)
            for _, hook in hooks:
                hook.leaf = torch.zeros(unit.channels, device=device, requires_grad=True) if exact else None

    @torch.no_grad()
    def set(self, values: Mapping[str, Tensor]) -> None:
        """Replaces gates: unit name → (channels,)."""
        for name, gate in values.items():
            unit = self._units[name]
            if self.values[name].requires_grad:
                gate = self.values[name].copy_(gate)  # noqa: PLW2901
            else:
                gate = self.values[name] = gate.detach().to(self.values[name])  # noqa: PLW2901
            is_open = bool((gate == 1).all())
            for site, hook in self._hooks[name]:
                repeated = unit.spread(gate, site.repeats)
                hook.feature_gate = None if is_open else repeated

    def take_gradients(self) -> None:
        """Puts into the `grad` of every exact gate what `backward` has left since the last time, averaged over all processes that train the
        model; None where there was no backward."""
        for name, gate in self.values.items():
            leaves = [hook.leaf for _, hook in self._hooks[name] if hook.leaf is not None]
            parts = [leaf.grad.to(gate.device) for leaf in leaves if leaf.grad is not None]
            gate.grad = torch.stack(parts).sum(0) if parts else None
            for leaf in leaves:
                leaf.grad = None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            for gate in self.values.values():
                gate.grad = torch.zeros_like(gate, requires_grad=False) if gate.grad is None else gate.grad
                dist.all_reduce(gate.grad)
                gate.grad /= dist.get_world_size()

    def forget_gradients(self) -> None:
        """Lets no gate keep its gradient from now on."""
        for name, gate in self.values.items():
            self.values[name] = gate.detach()
            for _, hook in self._hooks[name]:
                hook.leaf = None

    @torch.no_grad()
    def check_can_fold(self) -> None:
        """Refuses, before any gate moves, weights that layers share which will be gated otherwise.

        Raises:
            PrunusError: naming one.
        """
        before = {name: gate.detach().clone() for name, gate in self.values.items()}
        self.set({name: torch.full_like(gate, 2.0 + place) for place, (name, gate) in enumerate(before.items())})
        try:
            _check_can_fold(self._model)
        finally:
            self.set(before)

    @torch.no_grad()
    def settle(self, kept: Mapping[str, Tensor]) -> None:
        """Ends with zeros and ones, the model computing the same: what the gate of a channel that stays is otherwise becomes part
        of the weights. So neither a checkpoint nor `extract` can lose it.

        Args:
            kept: unit name → bool (channels,). The gates of all others are shut.

        Raises:
            PrunusError: as `fold_gates`, of weights that must stay shared; gates and weights are as before.
        """
        self.forget_gradients()
        before = dict(self.values)
        self.set({name: torch.where(kept[name].to(gate.device), gate, 1.0) for name, gate in before.items()})
        try:
            fold_gates(self._model, apart=False)
        except PrunusError:
            self.set(before)
            raise
        self.set({name: kept[name].float() for name in self.values})

    def mark_saved(self, is_saved: bool) -> None:
        """Says whether the gates are saved along with the model, so that nobody need be warned."""
        for _, hook in (pair for pairs in self._hooks.values() for pair in pairs):
            hook.is_saved = is_saved

    def remove(self) -> None:
        """Takes the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def gates_of(model: nn.Module) -> Iterator[tuple[nn.Module, GateHook]]:
    """Every gate on a model, with the layer that it is on."""
    for module in model.modules():
        yield from ((module, hook) for hook in module._forward_hooks.values() if isinstance(hook, GateHook))


@torch.no_grad()
def fold_gates(model: nn.Module, apart: bool = True) -> None:
    """Makes every gate part of the weights that it multiplies, W_r ← ζ W_r and b_r ← ζ b_r, and opens it: the model computes the same.

    A parameter that several layers share is multiplied once; momentum copies follow their originals.

    Args:
        apart: a layer that shares a parameter with others, which are gated otherwise, gets one of its own.

    Raises:
        PrunusError: there is such a layer, and it must not.
    """
    factors = _factors(model)
    torn = _gated_otherwise(model, factors) if apart and factors else set()
    if not apart:
        _check_can_fold(model)
    done: set[int] = set()
    for layer, gate in factors.items():
        for name, parameter in list(layer.named_parameters(recurse=False)):
            factor = gate.to(parameter.device).view(-1, *[1] * (parameter.ndim - 1))
            if id(parameter) in torn:
                product = (parameter * factor).to(parameter.dtype)
                setattr(layer, name, nn.Parameter(product, parameter.requires_grad))
            elif id(parameter) not in done:
                done.add(id(parameter))
                parameter.mul_(factor)
                if parameter.grad is not None:  # so that a step along it does what it would have done before
                    parameter.grad.mul_(factor)
    for _, hook in gates_of(model):
        hook.feature_gate = None


def _factors(model: nn.Module) -> dict[nn.Module, Tensor]:
    """Layer → the gate of its features, where it is not open."""
    factors: dict[nn.Module, Tensor] = {}
    for module, hook in gates_of(model):
        if hook.feature_gate is not None:
            factors |= dict.fromkeys((module, *hook.followers), hook.feature_gate)
    return factors


def _check_can_fold(model: nn.Module) -> None:
    factors = _factors(model)
    torn = _gated_otherwise(model, factors) if factors else set()
    if torn:
        name = next(name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in torn)
        raise PrunusError(
            "model", name, "layers that are gated otherwise share it, so that no gate can become part of it; give each layer its own"
        )  # fmt: skip


def _gated_otherwise(model: nn.Module, factors: Mapping[nn.Module, Tensor]) -> set[int]:
    """Ids of the parameters that layers share of which not all are gated alike."""
    torn: set[int] = set()
    first: dict[int, Tensor | None] = {}
    for module in model.modules():
        gate = factors.get(module)
        for parameter in module.parameters(recurse=False):
            other = first.setdefault(id(parameter), gate)
            if gate is not other and (gate is None or other is None or not torch.equal(gate.to(other.device), other)):
                torn.add(id(parameter))
    return torn


def warn_of_gates(model: nn.Module) -> None:
    """Warns of saving a model that is being searched: its weights are the unmasked ones."""
    if any(hook.feature_gate is not None and not hook.is_saved for _, hook in gates_of(model)):
        warnings.warn(
            "this model is being searched, and its weights are saved without the gates: what is loaded from them computes "
            "something else. Save extract(model, search.plan()), or call search.close() before",
            UserWarning, stacklevel=4,
        )  # fmt: skip


def remove_gates(model: nn.Module) -> None:
    """Takes every gate off a model, for instance off a copy of one that is being searched."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                if isinstance(getattr(hook, "__self__", hook), GateHook):
                    del hooks[key]
