"""Gates that train: how, and the optimiser that steps them beside the model's."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
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
        self._followed, self._gates, self._own_rate = inner, gates, training.gate_learning_rate
        for number, group in enumerate(inner.param_groups):
            if not isinstance(group["lr"], Real | Tensor):
                raise self._refusal(f"the learning rate of group {number} is {group['lr']}")
            if group.get("maximize"):
                raise self._refusal(
                    "it maximises, and the l1 term would push gates away from zero; minimise the negative"
                )
        self._fastest = max(range(len(inner.param_groups)), key=lambda number: _full_rate(inner.param_groups[number]))
        self._full_rate = _full_rate(self._group)
        if self._own_rate is not None and self._full_rate == 0:
            raise self._refusal("its learning rate is 0, so that no schedule can be read off it")
        kind = type(inner)
        if inspect.signature(kind.step).parameters.get("closure", _OPTIONAL).default is inspect.Parameter.empty:
            raise self._refusal("its step needs a closure")
        known = inspect.signature(kind.__init__).parameters
        settings = {name: value for name, value in inner.defaults.items() if name in known}
        try:
            self._optimizer: Any = kind(list(gates.values()), **settings)
        except (TypeError, ValueError, RuntimeError) as error:
            raise self._refusal(f"another one like it cannot be made ({error})") from None
        own = {"weight_decay": training.gate_weight_decay} if "weight_decay" in self._group else {}
        kept = {
            name: value
            for name, value in self._group.items()
            if name not in ("params", "initial_lr", "max_lr", "min_lr")
        }
        self._optimizer.param_groups[0].update(kept | own)

    def _refusal(self, reason: str) -> PrunusError:
        return PrunusError(
            "optimizer", type(self._followed).__name__, f"gates train by one like it, and {reason}; take AdamW or SGD"
        )

    @property
    def _group(self) -> dict[str, Any]:
        """The fastest group, which `load_state_dict` may have made anew."""
        group: dict[str, Any] = self._followed.param_groups[self._fastest]
        return group

    @property
    def about(self) -> dict[str, Any]:
        """What the state belongs to, in JSON: the class, and the height of the schedule."""
        return {"class": type(self._followed).__name__, "full_rate": self._full_rate}

    def step(self) -> None:
        """One step along the gradients of the gates."""
        now = float(self._group["lr"])
        rate = now if self._own_rate is None else self._own_rate * now / self._full_rate
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()

    def state(self) -> State:
        """What the optimiser remembers, by the gates' names: kind → unit → tensor. Numbers are tensors without dimensions.

        Raises:
            PrunusError: there is something else.
        """
        found: State = {}
        for number, (name, _) in enumerate(self._gates.items()):
            for key, value in self._optimizer.state_dict()["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    found.setdefault(f"{OF_OPTIMIZER}{key}", {})[name] = value
                elif isinstance(value, int | float):
                    found.setdefault(f"{OF_OPTIMIZER}{NUMBER}{key}", {})[name] = torch.tensor(value)
                elif value is not None:
                    raise self._refusal(f"it remembers {key} as {type(value).__name__}, which cannot be saved")
        return found

    def check(self, about: Any, state: Mapping[str, Tensor], source: str) -> None:
        """Refuses what another optimiser has saved.

        Raises:
            PrunusError: see above.
        """
        found = about.get("class") if isinstance(about, dict) else None
        wrong = [key for key, value in state.items() if not self._fits(key, value)]
        if found != self.about["class"] or wrong or not isinstance(about.get("full_rate"), int | float):
            raise PrunusError(
                "search state", source, f"it was saved by a search whose gates {found} trained; take that one in place of {self.about['class']}"
            )  # fmt: skip

    def _fits(self, key: str, value: Tensor) -> bool:
        name = key.partition("/")[2]
        return name in self._gates and (value.ndim == 0 or value.shape == self._gates[name].shape)

    def load(self, about: Any, state: Mapping[str, Tensor]) -> None:
        """Restores what `state` returned, with kind/unit for its keys, and `about`."""
        self._full_rate = float(about["full_rate"])
        places = {name: number for number, name in enumerate(self._gates)}
        whole = self._optimizer.state_dict()
        for key, value in state.items():
            kind, _, name = key.removeprefix(OF_OPTIMIZER).partition("/")
            is_number = kind.startswith(NUMBER)
            entry = whole["state"].setdefault(places[name], {})
            entry[kind.removeprefix(NUMBER)] = value.item() if is_number else value.clone()
        self._optimizer.load_state_dict(whole)


def check_trains(optimizer: Any, model: nn.Module) -> None:
    """Refuses an optimiser of another model.

    Raises:
        PrunusError: it holds no weight of this one.
    """
    ours = {id(parameter) for parameter in model.parameters()}
    groups = getattr(optimizer, "param_groups", None)
    if groups and not any(id(parameter) in ours for group in groups for parameter in group["params"]):
        raise PrunusError(
            "optimizer", type(optimizer).__name__, "it holds no weight of this model; give the one that trains it"
        )


def _full_rate(group: Mapping[str, Any]) -> float:
    """Learning rate of a group, at the height of its schedule."""
    return float(group.get("max_lr", group.get("initial_lr", group["lr"])))


OF_OPTIMIZER, NUMBER = "optimizer.", "number."
"""Mark the kinds of a state that are the optimiser's, and those of them that are numbers."""
_OPTIONAL = inspect.Parameter("closure", inspect.Parameter.KEYWORD_ONLY, default=None)
