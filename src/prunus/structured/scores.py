"""How much a channel matters: the gradient of the loss with respect to its gate, read off the weight gradients.

With y = ζ ⊙ (W x + b), each producer row r of channel j obeys ∂L/∂ζ_j = (⟨W_r, ∂L/∂W_r⟩ + b_r ∂L/∂b_r) / ζ_j for ζ_j > 0,
W being the stored, unmasked weight. The sum over a channel's rows costs one pass over weights and gradients, and no
activation is kept for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from prunus.anatomy import Layer, Unit, gated
from prunus.parallel import add_up, from_rows_here, group_of, local


@torch.no_grad()
def gate_gradient(model: nn.Module, unit: Unit, gate: Tensor) -> Tensor | None:
    """∂L/∂ζ of one unit, (channels,), fp32. Zero where the gate is shut (ζ = 0); None where no gradient came.

    Args:
        model: after `backward`, before gradients are clipped.
        gate: ζ of the forward pass that made the gradients, (channels,). The result lies on its device, wherever the
            unit does. One that keeps its gradient itself has it also where it is shut or negative.
    """
    if gate.requires_grad:
        return gate.grad
    total, came = torch.zeros_like(gate), False
    for site, layer in gated(model, unit):
        weight, bias = layer.weight, layer.bias
        if weight.grad is None:
            continue
        came = True
        rows = of_features(layer, _row_products(layer.features(local(weight)), layer.features(local(weight.grad))))
        if bias is not None and bias.grad is not None:
            slopes = local(bias).float() * local(bias.grad).float()
            of_bias = layer.features(slopes).sum(1) if bias.ndim == weight.ndim else slopes.flatten()
            rows = rows + from_rows_here(of_bias, bias, bias.numel())
        total += unit.gather(rows, site.order).to(total.device)
    if not came:
        return None
    return torch.where(gate > 0, total / gate.clamp_min(torch.finfo(gate.dtype).tiny), 0.0)


@torch.no_grad()
def gates_with_gradients(model: nn.Module, units: Iterable[Unit], gates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gates with their gradients, of a model whose weights are sharded: each process multiplies the rows that it has, and one sum over
    processes makes ∂L/∂ζ of all units whole.

    Args:
        gates: unit → ζ (channels,), on one device.
    """
    found = {name: gate.clone().requires_grad_() for name, gate in gates.items()}
    for unit in units:
        found[unit.name].grad = gate_gradient(model, unit, gates[unit.name])
    add_up([gate.grad for gate in found.values() if gate.grad is not None], group_of(model.parameters()))
    return found


def of_features(layer: Layer, values: Tensor) -> Tensor:
    """What the rows here of a layer's weight, as `layer.features` orders them, say of every feature of the whole: zero, or a part of a sum,
    where the weight is sharded."""
    weight = layer.weight
    if weight.ndim == 2 and layer.side == 1:
        return values
    return from_rows_here(values, weight, len(weight) * (weight.shape[layer.side] if layer.is_fused else 1))


CHUNK = 1 << 17
"""Elements multiplied at a time: small enough to stay in a core's cache, which makes the pass three times as fast."""


def _row_products(weight: Tensor, gradient: Tensor) -> Tensor:
    """⟨W_r, G_r⟩ for every row r, (rows,), accumulated in fp32."""
    if weight.dtype == gradient.dtype == torch.float32:
        products: Tensor = torch.linalg.vecdot(weight, gradient)
        return products
    rows = weight.shape[0] if weight.is_cuda else max(1, CHUNK // weight.shape[1])
    pairs = zip(torch.split(weight, rows), torch.split(gradient, rows), strict=True)
    return torch.cat([(part.float() * slope.float()).sum(1) for part, slope in pairs])


def column_products(output: Tensor, slope: Tensor) -> Tensor:
    """⟨Y_c, G_c⟩ for every column c of two matrices (positions, features), (features,), accumulated in fp32."""
    rows = len(output) if output.is_cuda else max(1, CHUNK // max(1, output.shape[1]))
    total = torch.zeros(output.shape[1], dtype=torch.float32, device=output.device)
    for part, along in zip(torch.split(output, rows), torch.split(slope, rows), strict=True):
        total += (part.float() * along.float()).sum(0)
    return total


def standardise(scores: dict[str, Tensor], units: tuple[Unit, ...]) -> dict[str, Tensor]:
    """z-scores within all attention units together and within all MLP units together, unbiased (UPop, section 3.2).

    A group whose scores are all equal becomes zero.
    """
    standardised: dict[str, Tensor] = {}
    for attention in (True, False):
        names = [unit.name for unit in units if unit.is_attention == attention]
        if not names:
            continue
        pooled = torch.cat([scores[name] for name in names])
        spread = pooled.std() if pooled.numel() > 1 else torch.zeros_like(pooled.mean())
        for name in names:
            centred = scores[name] - pooled.mean()
            standardised[name] = torch.zeros_like(centred) if spread == 0 else centred / spread
    return standardised
