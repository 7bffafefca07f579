"""Adapters in a training loop of one's own, in one process or, under `fully_shard` (FSDP2), in several.

The weights lie in shards and are frozen; A and B are whole in every process and no business of FSDP. A layer computes with the weight that
FSDP has made whole for it, and reads the zeros off it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from prunus.anatomy import place_of
from prunus.errors import PrunusError
from prunus.parallel import (
    add_up,
    agreeing,
    has_shards,
    is_sharded,
    local,
    of_first,
    processes,
    reshard,
    several,
)
from prunus.refusals import expect, is_absent, plain_model, refuse_weight
from prunus.repair.lora import Adapters
from prunus.repair.masks import check_zeros, zeros_of
from prunus.repair.methods import LoRA


class AddedAdapters:
    """Adapters that train in a loop of one's own; a context manager that merges them when it is left, or a handle for doing so by hand."""

    def __init__(self, model: nn.Module, method: LoRA, seed: int):
        self._model = model
        self._masks = zeros_of(model)
        for name in self._masks:
            refuse_weight(name, local(model.get_parameter(place_of(model, name).parameter).detach()))
        self._adapters = Adapters(model, self._masks, method.rank, method.alpha, method.masked, seed=of_first(seed))
        self._hooks = ExitStack()
        if several():
            averaging = _Averaging(self.parameters())
            for parameter in self.parameters():
                self._hooks.callback(parameter.register_post_accumulate_grad_hook(averaging).remove)  # type: ignore[no-untyped-call]
            self._hooks.callback(model.register_forward_pre_hook(averaging.reset).remove)

    def __enter__(self) -> AddedAdapters:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.merge()
        else:
            self.remove()

    def parameters(self) -> list[nn.Parameter]:
        """What trains: A and B of every layer, in fp32."""
        layers: Any = [layer.linear for layer in self._adapters.layers.values()]
        return [parameter for layer in layers for parameter in (layer.lora_A, layer.lora_B)]

    def merge(self) -> None:
        """Puts them into the weights, in each process into its rows, takes them off, and counts the zeros.

        Raises:
            PrunusError: the weights were changed meanwhile, so that a zero was lost.
        """
        with agreeing():
            self._hooks.close()
            reshard(self._model)
            self._adapters.merge()
            check_zeros(self._model, self._masks)

    def remove(self) -> None:
        """Takes them off; the weights are as they were before."""
        self._hooks.close()
        self._adapters.remove()


def add_adapters(model: nn.Module, method: LoRA, seed: int = 0) -> AddedAdapters:
    """Puts low-rank adapters on a pruned model that you train with a loop of your own; all else is frozen until they are merged.

    Under `fully_shard` (FSDP2), which is called before, every process has all of A and B, whose gradients are averaged at the end of each backward
    pass. Of what a method learns from a teacher `Lesson` makes the loss.

    Args:
        model: pruned by prunus, or with zeros from elsewhere in the matrices that prunus knows.
        method: `MaskedLoRA`, `RESSA` or `LoRA`.
        seed: of A; B is zero.

    Raises:
        PrunusError: nothing in the model is pruned; it has no such tower; all of it is frozen; or, in several processes, its weights are whole, sharded
            otherwise than by rows over all processes, or offloaded.

    Examples:
        >>> with add_adapters(model, MaskedLoRA(rank=8)) as adapters:
        ...     log = train(model, torch.optim.AdamW(adapters.parameters(), lr=1e-4))
    """
    with agreeing():
        model = plain_model(model)
        expect("method", method, LoRA, "prunus.MaskedLoRA(rank=8)")
        reshard(model)
        _refuse_placement(model)
        return AddedAdapters(model, method, seed)


def _refuse_placement(model: nn.Module) -> None:
    if several() and not has_shards(model):
        raise PrunusError(
            "model", type(model).__name__, "every process has all of its weights: call fully_shard first, or let prunus.repair train it under DDP"
        )  # fmt: skip
    if has_shards(model) and getattr(model, "prunus_mirrors", None):
        raise PrunusError(
            "model", type(model).__name__, "it has momentum copies, which follow whole weights; let prunus.repair train it under DDP"
        )  # fmt: skip
    for name, parameter in model.named_parameters():
        mesh = getattr(parameter, "device_mesh", None)
        if mesh is None:
            if is_absent(parameter):
                refuse_weight(name, parameter)
            continue
        if not is_sharded(parameter) or mesh.size() != processes():
            raise PrunusError(
                "model", name, "it is sharded otherwise than by rows over all processes; call fully_shard with its default placement and no tensor parallelism"
            )  # fmt: skip
        if parameter.device.type != mesh.device_type:
            raise PrunusError(
                "model", name, f"it lies on {parameter.device.type} and is computed with on {mesh.device_type}; load it, and call fully_shard without offload_policy"
            )  # fmt: skip


class _Averaging:
    """Averages gradients over processes when a backward pass ends: also where the pass of another process has reached other layers."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self._parameters = parameters
        self._awaits_end = False

    def reset(self, *_: object) -> None:
        """Before a forward pass: a backward pass that failed has not ended."""
        self._awaits_end = False

    def __call__(self, _: Tensor) -> None:
        if not self._awaits_end:
            self._awaits_end = True
            torch.autograd.Variable._execution_engine.queue_callback(self._average)  # as DDP and FSDP2 do

    @torch.no_grad()
    def _average(self) -> None:
        self._awaits_end = False
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        reached = torch.tensor([float(p.grad is not None) for p in self._parameters], device=gradients[0].device)
        add_up([*gradients, reached])
        for parameter, gradient, anywhere in zip(self._parameters, gradients, reached.tolist(), strict=True):
            if anywhere:
                parameter.grad = gradient.div_(processes())
