"""What puts a gate's value on the computation of one layer, and reads its exact gradient where it is asked for."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunus.anatomy import Layer, Site, Unit
from prunus.structured.scores import column_products


class GateHook:
    """Forward hook of one producer, which multiplies what it puts out.

    Attributes:
        feature_gate: (features,), None while every gate is one.
        layer: the producer. A copy of its module has the hook, too: what the hook is on counts, not `layer.owner`.
        leaf: zeros (channels,) in whose `grad` `backward` leaves this layer's part of ∂L/∂ζ, whatever ζ is; None where nobody asks for it.
        is_saved: whether whoever saves the model saves the gates, too.
        followers: the same layer of momentum copies, which carry no gate of their own.
    """

    def __init__(self, unit: Unit, site: Site, layer: Layer, followers: tuple[Layer, ...] = ()) -> None:
        self.unit, self.site, self.layer = unit, site, layer
        self.feature_gate: Tensor | None = None
        self.leaf: Tensor | None = None
        self.is_saved = False
        self.followers = followers

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if self.feature_gate is None:
            return output if self.leaf is None else self._gated(output, module)
        if self.feature_gate.device != output.device:  # a twin on another device, or a model that was moved
            self.feature_gate = self.feature_gate.to(output.device)
        if self.leaf is None or not torch.is_grad_enabled():
            return output.mul_(self.feature_gate)
        return self._gated(output, module)

    def _gated(self, output: Tensor, module: nn.Module) -> Tensor:
        return cast(Tensor, _Gated.apply(output, self.feature_gate, self.leaf, self, module))  # type: ignore[no-untyped-call]

    def register(self) -> list[RemovableHandle]:
        """Puts it on the module of its layer."""
        return [self.layer.owner.register_forward_hook(self)]


class _Gated(torch.autograd.Function):
    """y ↦ ζ ⊙ y, with a gradient for ζ, which is read off y and not off the weights: it is right for every ζ.

    It adds up as those of the weights do: where that of the layer's weight has been thrown away (`zero_grad`), so is this one.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, feature_gate: Tensor | None, leaf: Tensor, hook: GateHook, owner: nn.Module
    ) -> Tensor:
        ctx.save_for_backward(output, feature_gate)
        ctx.leaf, ctx.hook, ctx.weight = leaf, hook, hook.layer.of(owner).weight
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


class ExpertsHook(GateHook):
    """The same for a parameter that holds all experts: while its module runs, it is the product of weight and gate.

    So it is right for every kernel that computes with the parameter, and what the gradient of the weight says of a gate is
    what it says of a linear layer's.
    """

    def before(self, module: nn.Module, inputs: Any) -> None:
        """Puts the products where the module reads its weight and bias."""
        layer = self.layer.of(module)
        self._own = layer.parameters
        if self.feature_gate is None and self.leaf is None:
            return
        gate = torch.ones(1) if self.feature_gate is None else self.feature_gate
        if self.leaf is not None and torch.is_grad_enabled():
            if layer.weight.requires_grad and layer.weight.grad is None:
                self.leaf.grad = None
            gate = gate.to(self.leaf.device) + self.unit.spread(self.leaf, self.site.repeats, self.site.order)
        factors = {name: layer.spread(gate, name) for name in self._own}
        for name, own in self._own.items():
            factor = factors[name].to(own.device, torch.promote_types(own.dtype, torch.float32))
            module._parameters[name] = (own * factor).to(own.dtype)  # type: ignore[assignment]

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        module._parameters.update(self._own)
        return output

    def register(self) -> list[RemovableHandle]:
        owner = self.layer.owner
        return [owner.register_forward_pre_hook(self.before), owner.register_forward_hook(self, always_call=True)]


def hook_for(unit: Unit, site: Site, layer: Layer, followers: tuple[Layer, ...]) -> GateHook:
    """The hook that suits how a layer's weight is stored."""
    return (ExpertsHook if layer.is_fused else GateHook)(unit, site, layer, followers)
