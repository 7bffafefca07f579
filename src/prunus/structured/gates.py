"""Gates: the mask values ζ that multiply a unit's channels during search.

A gate multiplies the outputs of the unit's producers, after their bias: q, k and v of an attention before the scores,
the hidden layer of an MLP before its activation (UPop, section 3), and what a layer norm over the channels makes of them. It adds no parameter to the model, and multiplies
in place, so that it keeps no activation for the backward pass. Where a layer's outputs are many more than its weights, and a
backward pass will follow, its weights are multiplied instead, for the time of the call: (ζ W) x + ζ b is the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunus.anatomy import Site, Unit, gated
from prunus.errors import PrunusError
from prunus.parallel import add_up, local, processes, several, to_rows_here
from prunus.structured.gate_hooks import GateHook, hook_for


class Gates:
    """The gates of a set of units, fp32, one value per channel, all one at first.

    Args:
        exact: whether every gate keeps its own gradient, until they settle. It costs the outputs that they multiply.
    """

    def __init__(self, model: nn.Module, units: Iterable[Unit], exact: bool = False):
        self._model = model
        self.values: dict[str, Tensor] = {}
        self._hooks: dict[str, list[tuple[Site, GateHook]]] = {}
        self._handles: list[RemovableHandle] = []
        self._units = {unit.name: unit for unit in units}
        for unit in self._units.values():
            hooks = self._hooks[unit.name] = []
            copies = [gated(model, unit, path) for path in unit.mirrors]
            for path in (unit.path, *unit.twins):
                for place, (site, layer) in enumerate(gated(model, unit, path)):
                    hook = hook_for(unit, site, layer, tuple(copy[place][1] for copy in copies))
                    self._handles += hook.register()
                    hooks.append((site, hook))
            device = gated(model, unit)[0][1].weight.device
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
                hook.feature_gate = None if is_open else unit.spread(gate, site.repeats, site.order)

    def take_gradients(self) -> None:
        """Puts into the `grad` of every exact gate what `backward` has left since the last time, averaged over all processes that train the
        model; None where there was no backward."""
        for name, gate in self.values.items():
            leaves = [hook.leaf for _, hook in self._hooks[name] if hook.leaf is not None]
            parts = [leaf.grad.to(gate.device) for leaf in leaves if leaf.grad is not None]
            gate.grad = torch.stack(parts).sum(0) if parts else None
            for leaf in leaves:
                leaf.grad = None
        if several():
            for gate in self.values.values():
                gate.grad = torch.zeros_like(gate, requires_grad=False) if gate.grad is None else gate.grad
            gradients = [gate.grad for gate in self.values.values() if gate.grad is not None]
            add_up(gradients)
            torch._foreach_div_(gradients, processes())

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
    factors = gate_factors(model)
    torn = _gated_otherwise(model, factors) if apart and factors else set()
    if not apart:
        _check_can_fold(model)
    done: set[int] = set()
    for (owner, name), gate in factors.items():
        parameter = owner.get_parameter(name)
        factor = gate.to(parameter.device)
        if id(parameter) in torn:
            product = (parameter * factor).to(parameter.dtype)
            setattr(owner, name, nn.Parameter(product, parameter.requires_grad))
        elif id(parameter) not in done:
            done.add(id(parameter))
            here = to_rows_here(factor, parameter)
            local(parameter).mul_(here)
            if parameter.grad is not None:  # so that a step along it does what it would have done before
                local(parameter.grad).mul_(here)
    for _, hook in gates_of(model):
        hook.feature_gate = None


def gate_factors(model: nn.Module) -> dict[tuple[nn.Module, str], Tensor]:
    """Module and name of a parameter → the gate of its features, where it is not open, in a shape that multiplies it."""
    factors: dict[tuple[nn.Module, str], Tensor] = {}
    for module, hook in gates_of(model):
        gate = hook.feature_gate
        if gate is not None:
            for layer in (hook.layer.of(module), *hook.followers):
                factors |= {(layer.owner, name): layer.spread(gate, name) for name in layer.parameters}
    return factors


def _check_can_fold(model: nn.Module) -> None:
    factors = gate_factors(model)
    torn = _gated_otherwise(model, factors) if factors else set()
    if torn:
        name = next(name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in torn)
        raise PrunusError(
            "model", name, "layers that are gated otherwise share it, so that no gate can become part of it; give each layer its own"
        )  # fmt: skip


def _gated_otherwise(model: nn.Module, factors: Mapping[tuple[nn.Module, str], Tensor]) -> set[int]:
    """Ids of the parameters that layers share of which not all are gated alike."""
    torn: set[int] = set()
    first: dict[int, Tensor | None] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            gate = factors.get((module, name))
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
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if isinstance(getattr(hook, "__self__", hook), GateHook):
                    del hooks[key]
                    module._forward_hooks_always_called.pop(key, None)
