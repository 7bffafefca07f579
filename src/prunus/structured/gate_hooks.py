"""What puts a gate's value on the computation of one layer, and reads its exact gradient where it is asked for."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunus.anatomy import Layer, Site, Unit
from prunus.parallel import is_sharded
from prunus.structured.scores import column_products

WORTHWHILE = 2
"""Outputs for each weight of a layer, from which on it is its weights that are multiplied."""


class GateHook:
    """Forward hook of one producer, which multiplies what it puts out, or its weights.

    Attributes:
        layer: the producer. A copy of its module has the hook, too: what the hook is on counts, not `layer.owner`.
        feature_gate: (features,), None while every gate is one.
        leaf: zeros (channels,) in whose `grad` `backward` leaves this layer's part of ∂L/∂ζ, whatever ζ is; None where nobody asks for it.
        is_saved: whether whoever saves the model saves the gates, too.
        followers: the same layer of momentum copies, which carry no gate of their own.
        shard: the weight that the optimiser has, where FSDP shards it: while the layer runs, it has another one, whole.
    """

    def __init__(self, unit: Unit, site: Site, layer: Layer, followers: tuple[Layer, ...] = ()) -> None:
        self.unit, self.site, self.layer = unit, site, layer
        self.feature_gate: Tensor | None = None
        self.leaf: Tensor | None = None
        self.is_saved = False
        self.followers = followers
        self.shard = layer.weight if is_sharded(layer.weight) else None

    def register(self) -> list[RemovableHandle]:
        """Puts it on the module of its layer."""
        owner = self.layer.owner
        return [owner.register_forward_pre_hook(self.before), owner.register_forward_hook(self, always_call=True)]

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Gives the layer weights that are gated already, for this call, where that is the smaller work."""
        if (
            self.feature_gate is None
            or self.leaf is not None
            or self.shard is not None  # whose product would be kept whole until the backward pass
            or not torch.is_grad_enabled()
            or type(module) is not nn.Linear
        ):
            return
        tokens = inputs[0].numel() // module.in_features if inputs else 0
        if tokens < WORTHWHILE * module.in_features or torch.compiler.is_compiling():
            return
        self._multiply(module, self.feature_gate)

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor | None) -> Tensor | None:
        if self.layer.name in module.__dict__:
            for name in module._parameters:
                module.__dict__.pop(name, None)
            return output
        if output is None:  # after an error of the layer
            return None
        return self._gated(output, module)

    def _gated(self, output: Tensor, module: nn.Module) -> Tensor:
        if self.feature_gate is not None and self.feature_gate.device != output.device:
            self.feature_gate = self.feature_gate.to(
                output.device
            )  # a twin on another device, or a model that was moved
        if self.leaf is None and self.feature_gate is None:
            return output
        if self.feature_gate is not None and (self.leaf is None or not torch.is_grad_enabled()):
            return output.mul_(self.feature_gate)
        return cast(Tensor, _Gated.apply(output, self.feature_gate, self.leaf, self, module))  # type: ignore[no-untyped-call]

    def _multiply(self, module: nn.Module, gate: Tensor) -> None:
        """Puts products of parameters and gate, (features,), where the module reads the parameters."""
        layer = self.layer.of(module)
        for name, parameter in layer.parameters.items():
            factor = layer.spread(gate.to(parameter.device), name)
            module.__dict__[name] = (parameter * factor).to(parameter.dtype)  # found before the parameter of that name


class ExpertsHook(GateHook):
    """The same for a parameter that holds all experts: while its module runs, it is the product of weight and gate.

    So it is right for every kernel that computes with the parameter, and what the gradient of the weight says of a gate is
    what it says of a linear layer's.
    """

    def before(self, module: nn.Module, inputs: Any) -> None:
        """Gives the module experts that are gated, for this call."""
        if self.feature_gate is None and self.leaf is None:
            return
        weight = self.layer.of(module).weight
        gate = torch.ones(1, device=weight.device) if self.feature_gate is None else self.feature_gate.to(weight.device)
        if self.leaf is not None and torch.is_grad_enabled():
            if weight.requires_grad and weight.grad is None:
                self.leaf.grad = None
            gate = gate + self.unit.spread(self.leaf, self.site.repeats, self.site.order).to(weight.device)
        elif self.feature_gate is None:
            return
        self._multiply(module, gate)

    def _gated(self, output: Tensor, module: nn.Module) -> Tensor:
        return output


class _Gated(torch.autograd.Function):
    """y ↦ ζ ⊙ y, with a gradient for ζ, which is read off y and not off the weights: it is right for every ζ.

    It adds up as those of the weights do: where that of the layer's weight has been thrown away (`zero_grad`), so is this one.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, feature_gate: Tensor | None, leaf: Tensor, hook: GateHook, module: nn.Module
    ) -> Tensor:
        ctx.save_for_backward(output, feature_gate)
        ctx.leaf, ctx.hook = leaf, hook
        ctx.weight = hook.layer.of(module).weight if hook.shard is None else hook.shard
        return output.clone() if feature_gate is None else _scaled(output, feature_gate)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, Tensor, None, None]:
        output, feature_gate = ctx.saved_tensors
        if ctx.weight.requires_grad and ctx.weight.grad is None:
            ctx.leaf.grad = None
        of_features = column_products(output.reshape(-1, output.shape[-1]), slope.reshape(-1, slope.shape[-1]))
        of_channels = ctx.hook.unit.gather(of_features, ctx.hook.site.order).to(ctx.leaf.device)
        return slope if feature_gate is None else _scaled(slope, feature_gate), None, of_channels, None, None


def _scaled(values: Tensor, feature_gate: Tensor) -> Tensor:
    return torch.mul(values, feature_gate, out=torch.empty_like(values))


def hook_for(unit: Unit, site: Site, layer: Layer, followers: tuple[Layer, ...]) -> GateHook:
    """The hook that suits how a layer's weight is stored."""
    return (ExpertsHook if layer.is_fused else GateHook)(unit, site, layer, followers)
