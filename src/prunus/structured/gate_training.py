"""Gates that train: how, and the optimiser that steps them beside the model's."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from prunus.anatomy import Unit
from prunus.errors import PrunusError
from prunus.structured.state import State
from prunus.typed import Factor, Typed


class GateTraining(Typed):
    """How gates train."""

    l1_mlp: Factor = 2e-4
    """w_m, the weight of |ζ| of an MLP channel in the loss (UPop, equation 3 and Table 11)."""
    l1_attention: Factor | None = None
    """w_a, that of an attention channel. None: w_a Σ|ζ_attention| and w_m Σ|ζ_mlp| are equal at the start, as in the paper."""
    gate_learning_rate: float | None = Field(default=None, gt=0, le=10)
    """Of the gates, at the height of the schedule. None: the highest of the optimiser's."""
    gate_weight_decay: float = Field(default=0.0, ge=0, le=1000)
    """Of the gates."""

    def l1_weights(self, units: tuple[Unit, ...]) -> dict[str, float]:
        """The weight of |ζ| in the loss: unit → w."""
        attention, mlp = (
            sum(unit.channels for unit in units if unit.is_attention == is_one) for is_one in (True, False)
        )
        balanced = self.l1_mlp * mlp / attention if attention and mlp else self.l1_mlp
        weight = balanced if self.l1_attention is None else self.l1_attention
        return {unit.name: weight if unit.is_attention else self.l1_mlp for unit in units}


class GateOptimizer:
    """Steps gates as an optimiser steps its weights: of the same class, with its settings, its learning rate rising and falling with
    that of the fastest of its groups.

    Args:
        optimizer: the model's.
        training: what differs from it.
        gates: unit → ζ (channels,), leaves whose gradients somebody else leaves in `grad`.

    Raises:
        PrunusError: another optimiser of its class cannot be made.
    """

    def __init__(self, optimizer: Optimizer, training: GateTraining, gates: dict[str, Tensor]):
        inner = getattr(optimizer, "optimizer", optimizer)  # of accelerate's wrapper
        if not isinstance(inner, Optimizer):
            raise PrunusError("optimizer", type(inner).__name__, "give the torch optimiser that trains the model")
        optimizer = inner
        kind, self._gates = type(optimizer), gates
        self._group = max(optimizer.param_groups, key=_full_rate)
        self._full_rate = _full_rate(self._group)
        self._rate = training.gate_learning_rate or self._full_rate
        known = inspect.signature(kind.__init__).parameters
        settings = {name: value for name, value in optimizer.defaults.items() if name in known}
        settings |= {"lr": self._rate} | (
            {"weight_decay": training.gate_weight_decay} if "weight_decay" in known else {}
        )
        try:
            self._optimizer: Any = kind(list(gates.values()), **settings)
        except (TypeError, ValueError) as error:
            raise PrunusError(
                "optimizer", kind.__name__, f"the gates need one of their own like it, which cannot be made ({error}); take AdamW or SGD"
            ) from None  # fmt: skip

    def step(self) -> None:
        """One step along the gradients of the gates."""
        now = float(self._group["lr"])
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * (now / self._full_rate if self._full_rate else 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def state(self) -> State:
        """What the optimiser remembers, by the gates' names: kind → unit → tensor."""
        found: State = {}
        for name, gate in self._gates.items():
            for key, value in self._optimizer.state.get(gate, {}).items():
                if isinstance(value, Tensor):
                    found.setdefault(f"{OF_OPTIMIZER}{key}", {})[name] = value
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state` returned, with kind/unit for its keys.

        Raises:
            PrunusError: it was another optimiser's.
        """
        for key, value in state.items():
            kind, _, name = key.removeprefix(OF_OPTIMIZER).partition("/")
            if name not in self._gates or (value.ndim and value.shape != self._gates[name].shape):
                raise PrunusError(
                    "search state", key, "it was saved by a search with another optimiser; take the same one"
                )
            gate = self._gates[name]
            self._optimizer.state[gate][kind] = value.to(gate.device) if value.ndim else value


def _full_rate(group: Mapping[str, Any]) -> float:
    """Learning rate of a group, at the height of its schedule."""
    return float(group.get("initial_lr", group["lr"]))


OF_OPTIMIZER = "optimizer."
"""Marks the kinds of a state that are the optimiser's."""
