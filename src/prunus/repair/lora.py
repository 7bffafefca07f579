"""Low-rank adapters that respect zeros (RESSA's masked LoRA), and plain ones for comparison.

    y = x·[(W + s·B A) ⊙ M]ᵀ + b,   s = alpha / rank                                    (masked)
    y = x·(W ⊙ M)ᵀ + s·(x Aᵀ) Bᵀ + b                                                     (plain)

M is the zero pattern of the pruned model, at one bit a weight. The effective weight is made for each use and never kept for
the backward pass: with G = dYᵀ X, dB = s·(G ⊙ M) Aᵀ and dA = s·Bᵀ (G ⊙ M). Where a dense teacher is given, W holds its
weights, so that one switch turns the student into the teacher. Shapes: R outputs, C inputs, K rank, T tokens.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.anatomy import CONNECTOR, Matrix, matrices, per_tower, sharing, towers_meant
from prunus.errors import PrunusError
from prunus.parallel import has_shards, is_sharded, local, rows_here
from prunus.repair.masks import BitMask, keep_nonzero, unpack

RANKS: dict[str, int] = {"vision": 4, "language": 8, CONNECTOR: 2}
"""RESSA's ranks; of a model that lacks one of these towers they are left out. A connector is not pruned: its adapters have
no mask."""

CHUNK = 1 << 18
"""Weights made at a time: small enough to stay in a core's cache."""


class Adapters:
    """Adapters on the linear layers of a pruned model, which train in place of its weights.

    Args:
        model: the pruned model; all of its own parameters are frozen. Layers that were frozen before get no adapters.
        masks: its zero patterns, of a sharded model those of the rows in this process; a layer without one has no zeros.
        ranks: of all pruned towers, or per tower (`connector` adds adapters to a connector, whose mask is all ones).
        alpha: the adapters' output is multiplied by alpha / rank.
        masked: whether the adapters' product is masked, too.
        teacher: the model before it was pruned; its weights are kept in place of the pruned ones, unless it differs from the
            model in anything else.
        seed: of A; B is zero.

    Raises:
        PrunusError: a tower that is not there, a teacher of another shape, or nothing that is not frozen.

    Attributes:
        holds_teacher: whether `off` makes the model its teacher.
    """

    def __init__(
        self, model: nn.Module, masks: Mapping[str, BitMask], ranks: int | Mapping[str, int], alpha: float,
        masked: bool = True, teacher: nn.Module | None = None, seed: int = 0,
    ):  # fmt: skip
        self.model = model
        chosen = [
            (m, r)
            for m, r in adapted(matrices(model, any_type=has_shards(model)), masks, ranks)
            if isinstance(_layer(model, m), nn.Linear)
        ]
        if not chosen:
            raise PrunusError(
                "model", type(model).__name__, "adapters go onto linear layers, and none of those is pruned; use masked_finetune"
            )  # fmt: skip
        chosen = [(m, rank) for m, rank in chosen if model.get_parameter(m.parameter).requires_grad]
        if not chosen:
            raise PrunusError(
                "model", type(model).__name__, "all that would get adapters is frozen; requires_grad_(True) on it"
            )
        dense = {} if teacher is None else {m.name: _teacher_weight(teacher, m) for m, _ in chosen}
        adapted_parameters = {m.parameter for m, _ in chosen}
        self.holds_teacher = teacher is not None and _agree_elsewhere(model, teacher, adapted_parameters)
        self._required = {parameter: parameter.requires_grad for parameter in model.parameters()}
        model.requires_grad_(False)
        self.layers: dict[str, _Adapted] = {}
        try:
            for matrix, rank in chosen:
                generator = torch.Generator().manual_seed(seed + zlib.crc32(matrix.name.encode()))
                self.layers[matrix.name] = _Adapted(
                    [layer for layer in sharing(model, matrix) if isinstance(layer, nn.Linear)],
                    masks.get(matrix.name),
                    rank,
                    alpha / rank,
                    masked,
                    dense[matrix.name] if self.holds_teacher else None,
                    generator,
                )
        except BaseException:
            self.remove()
            raise

    @contextmanager
    def off(self) -> Iterator[nn.Module]:
        """While the context is open, the model is its teacher: no masks, no adapters."""
        for layer in self.layers.values():
            layer.off = True
        try:
            yield self.model
        finally:
            for layer in self.layers.values():
                layer.off = False

    def merge(self) -> None:
        """Puts the effective weights, computed in fp32 and cast once, in place of all this and takes the adapters off."""
        for layer in self.layers.values():
            layer.merge()
        self.remove()

    def remove(self) -> None:
        """Takes the adapters off; a weight that holds the teacher's stays so."""
        for layer in self.layers.values():
            layer.remove()
        self.layers.clear()
        for parameter, was in self._required.items():
            parameter.requires_grad_(was)


def adapted(
    candidates: Sequence[Matrix], pruned: Collection[str], ranks: int | Mapping[str, int]
) -> list[tuple[Matrix, int]]:
    """Pruned matrices, and those of a connector that has a rank, each with its rank.

    Raises:
        PrunusError: a tower that the model lacks, or no matrix is left.
    """
    towers = tuple(dict.fromkeys(m.tower for m in candidates))
    if isinstance(ranks, int):
        resolved = {m.tower: ranks for m in candidates if m.name in pruned}
    else:
        standard = dict(ranks) == RANKS
        present = {name: rank for name, rank in ranks.items() if not standard or towers_meant(name, towers)}
        resolved = per_tower(present, towers, "rank", "the model has no such tower; towers: {}")
    chosen = [
        (matrix, int(resolved[matrix.tower]))
        for matrix in candidates
        if matrix.tower in resolved and (matrix.name in pruned or matrix.tower == CONNECTOR)
    ]
    if not chosen:
        raise PrunusError("rank", ranks, "no tower with a rank is pruned, so nothing would train; name one that is")
    return chosen


def _layer(model: nn.Module, matrix: Matrix) -> nn.Module | None:
    return next(iter(sharing(model, matrix)), None)


def _agree_elsewhere(model: nn.Module, teacher: nn.Module, but: Collection[str]) -> bool:
    """Whether, but for some by their names, a model has the parameters of its teacher."""
    theirs = dict(teacher.named_parameters())
    return all(
        name in theirs and torch.equal(parameter, theirs[name].to(parameter))
        for name, parameter in model.named_parameters()
        if name not in but
    )


def _teacher_weight(teacher: nn.Module, matrix: Matrix) -> Tensor:
    try:
        weight = matrix.view(teacher)
    except AttributeError:
        raise PrunusError("teacher", matrix.name, "it has no such layer; give the model before it was pruned") from None
    if tuple(weight.shape) != (matrix.rows, matrix.columns):
        raise PrunusError(
            "teacher", f"{matrix.name}: {tuple(weight.shape)}", f"here it is {(matrix.rows, matrix.columns)}; give the model before it was pruned"
        )  # fmt: skip
    return weight


class _Adapted:
    """One linear layer with its adapter, and those that share its weight; the adapter's parameters are the layer's, so that
    they are saved with it."""

    def __init__(
        self, linears: Sequence[nn.Linear], mask: BitMask | None, rank: int, scale: float, masked: bool, dense: Tensor | None,
        generator: torch.Generator,
    ):  # fmt: skip
        linear, self.linears = linears[0], linears
        self.linear, self.scale, self.masked, self.off = linear, scale, masked, False
        weight = linear.weight
        self.sharded = is_sharded(weight)
        down = torch.empty(rank, linear.in_features).uniform_(-1, 1, generator=generator) / math.sqrt(
            linear.in_features
        )
        linear.lora_A = nn.Parameter(down.to(weight.device))  # Kaiming uniform with slope √5, as LoRA's
        linear.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, device=weight.device))
        linear.register_buffer("lora_mask", None if mask is None else mask.packed, persistent=False)
        linear.register_buffer("pruned_weight", None, persistent=False)
        if dense is not None and mask is not None:
            kept = mask.unpack(weight.device)
            dense = dense.to(weight)
            if not torch.equal(weight.detach(), dense * kept):  # the pruner changed what it kept
                linear.pruned_weight = weight.detach().clone()
            weight.data.copy_(dense)
        self._has_teacher = dense is not None
        for owner in linears:
            owner.forward = partial(self.forward, owner)  # type: ignore[method-assign]
            owner.weight_in_effect = self.effective  # type: ignore[assignment]

    def forward(self, owner: nn.Linear, x: Tensor) -> Tensor:
        linear: Any = self.linear
        bias = owner.bias
        if self.off:
            return F.linear(x, linear.weight, bias)
        base = linear.weight if linear.pruned_weight is None else linear.pruned_weight
        if self.masked and linear.lora_mask is not None:
            packed = None if self.sharded else linear.lora_mask
            return _MaskedLinear.apply(  # type: ignore[no-any-return,no-untyped-call]
                x, base, linear.lora_A, linear.lora_B, bias, packed, self.scale
            )
        if self._has_teacher and linear.lora_mask is not None and linear.pruned_weight is None:
            base = base * unpack(linear.lora_mask, base.shape)
        output = F.linear(x, base, bias)
        low = F.linear(F.linear(x.to(linear.lora_A.dtype), linear.lora_A), linear.lora_B)
        return output + self.scale * low.to(output.dtype)

    @torch.no_grad()
    def effective(self) -> Tensor:
        """The weight that the layer computes with while the adapter is on, masked, in its own type; of a sharded one, the rows here."""
        linear: Any = self.linear
        base = local(linear.weight) if linear.pruned_weight is None else linear.pruned_weight
        up, packed = linear.lora_B[rows_here(linear.weight)], linear.lora_mask
        made = effective_weight(base, linear.lora_A, up, packed, self.scale, masked=packed is not None)
        return made.to(base.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        linear: Any = self.linear
        merged = self.effective()
        if linear.lora_mask is not None:
            keep_nonzero(merged, unpack(linear.lora_mask, merged.shape))
        local(linear.weight.detach()).copy_(merged)

    def remove(self) -> None:
        for name in ("lora_A", "lora_B", "lora_mask", "pruned_weight"):
            delattr(self.linear, name)
        for owner in self.linears:
            del owner.forward, owner.weight_in_effect


def effective_weight(
    weight_RC: Tensor,
    down_KC: Tensor,
    up_RK: Tensor,
    packed: Tensor | None,
    scale: float,
    dtype: torch.dtype | None = None,
    masked: bool = True,
) -> Tensor:
    """(W + s·B A) ⊙ M, (R, C), accumulated in fp32 at least and cast once; a strip of rows at a time. Without its bits, M is where W is not 0."""
    rows, columns = weight_RC.shape
    wide = torch.promote_types(weight_RC.dtype, torch.float32)
    made = torch.empty(rows, columns, dtype=dtype or wide, device=weight_RC.device)
    step = rows if weight_RC.is_cuda else max(8, CHUNK // columns // 8 * 8)  # whole bytes of the mask
    down = down_KC.detach().to(wide)
    for start in range(0, rows, step or 1):
        strip = slice(start, min(start + step, rows))
        part = torch.addmm(weight_RC[strip].to(wide), up_RK[strip].detach().to(wide), down, alpha=scale)
        made[strip] = part.mul_(_kept(weight_RC, packed, strip)) if masked else part
    return made


def _kept(weight_RC: Tensor, packed: Tensor | None, rows: slice) -> Tensor:
    """The mask of some rows, the first of which begins a byte."""
    if packed is None:
        return weight_RC[rows] != 0
    columns = weight_RC.shape[1]
    first, last = rows.start * columns // 8, -(-rows.stop * columns // 8)
    return unpack(packed[first:last], torch.Size((rows.stop - rows.start, columns)))


class _MaskedLinear(torch.autograd.Function):
    """x·[(W + s·BA) ⊙ M]ᵀ + b, which keeps x and nothing of the size of W."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        down: Tensor,
        up: Tensor,
        bias: Tensor | None,
        packed: Tensor | None,
        scale: float,
    ) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        x_in_dtype = x.to(dtype)
        ctx.save_for_backward(x_in_dtype, weight, down, up, packed)
        ctx.scale, ctx.dtype, ctx.x_dtype = scale, dtype, x.dtype
        with torch.autocast(kind, enabled=False):
            made = effective_weight(weight, down, up, packed, scale, dtype)
            return F.linear(x_in_dtype, made, None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, packed = ctx.saved_tensors
        dy_TR = gradients[0].to(ctx.dtype).reshape(-1, gradients[0].shape[-1])
        dx = ddown = dup = dbias = None
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                made = effective_weight(weight, down, up, packed, ctx.scale, ctx.dtype)
                dx = (dy_TR @ made).view(x.shape).to(ctx.x_dtype)
                del made
            if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
                ddown, dup = _adapter_gradients(dy_TR, x.reshape(-1, x.shape[-1]), weight, down, up, packed, ctx.scale)
            if ctx.needs_input_grad[4]:
                dbias = dy_TR.sum(0)
        return dx, None, ddown, dup, dbias, None, None


def _adapter_gradients(
    dy_TR: Tensor, x_TC: Tensor, weight_RC: Tensor, down_KC: Tensor, up_RK: Tensor, packed: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """dA = s·Bᵀ (G ⊙ M) and dB = s·(G ⊙ M) Aᵀ with G = dYᵀ X."""
    gradient_RC = dy_TR.T @ x_TC
    rows, columns = gradient_RC.shape
    ddown, dup = torch.zeros_like(down_KC), torch.empty_like(up_RK)
    step = rows if x_TC.is_cuda else max(8, CHUNK // columns // 8 * 8)
    for start in range(0, rows, step):
        strip = slice(start, min(start + step, rows))
        part = gradient_RC[strip].to(down_KC.dtype) * _kept(weight_RC, packed, strip)
        dup[strip] = scale * (part @ down_KC.T)
        ddown.addmm_(up_RK[strip].T, part, alpha=scale)
    return ddown, dup
