"""Gradients of gates, from backward passes in which no weight has one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from prunus.anatomy import Unit
from prunus.batches import bf16_autocast, naming_batch
from prunus.calibrated.scores import GradientTimesGate
from prunus.errors import PrunusError
from prunus.losses import Loss, scalar
from prunus.modules import quiet
from prunus.structured import Gates


def by_gradient(
    model: nn.Module, units: Sequence[Unit], score: GradientTimesGate, batches: Iterable[Any], loss: Loss, bf16: bool
) -> dict[str, Tensor]:
    """Unit → what its channels are worth by the gradients of their gates, (channels,), fp32, on the CPU.

    Raises:
        PrunusError: a gradient is not finite, or the loss depends on no channel of a unit.
    """
    worth = {unit.name: torch.zeros(unit.channels) for unit in units}
    is_used = dict.fromkeys(worth, False)
    gates = Gates(model, units, exact=True)
    autocast = bf16_autocast(model, bf16)
    with ExitStack() as around:
        around.callback(gates.remove)
        for parameter in model.parameters():
            around.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        around.enter_context(quiet(model))
        for number, batch in enumerate(batches):
            with naming_batch(f"batch {number}"), torch.enable_grad():
                with autocast:
                    total = scalar(loss, model, batch)
                if total.requires_grad:
                    total.backward()  # type: ignore[no-untyped-call]
            gates.take_gradients()
            for name, gate in gates.values.items():
                if gate.grad is None:
                    continue
                if not bool(gate.grad.isfinite().all()):
                    raise PrunusError(
                        "batches", f"batch {number}", f"the gradient of {name} is not finite; look at that batch"
                    )
                worth[name] += score.of_gradient(gate.grad.float().cpu())
                is_used[name] = is_used[name] or bool(gate.grad.any())
    unused = next((name for name, used in is_used.items() if not used), None)
    if unused is not None:
        raise PrunusError(
            "batches", unused, "the loss of no calibration batch depends on it; give batches that use it, or exclude it"
        )
    return worth
