"""What a search method is: what it reads of a model, what it remembers of that, and when it decides."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import BeforeValidator
from torch import Tensor, nn

from prunus.anatomy import Unit
from prunus.errors import PrunusError
from prunus.structured.scores import gate_gradient
from prunus.typed import Typed, named

State = dict[str, dict[str, Tensor]]
"""What a method remembers: kind → unit → tensor. `Search` saves and restores it as it is."""


@dataclass(frozen=True)
class Decision:
    """Which channels stay from now on, and how far every gate is open."""

    kept: dict[str, Tensor]
    """Unit → bool (channels,), True where the channel stays."""
    gates: dict[str, Tensor]
    """Unit → ζ (channels,), the factor of each channel from the next forward pass on."""
    asked: float
    """The ratio that was asked for; the achieved one is counted."""

    def check(self, method: str, units: tuple[Unit, ...]) -> None:
        """Refuses a decision that does not fit the units, which is a fault of the method that made it.

        Raises:
            PrunusError: naming the method and the unit.
        """
        wanted = [(unit.name, (unit.channels,)) for unit in units]
        for decided in (self.kept, self.gates):
            if sorted((name, tuple(tensor.shape)) for name, tensor in decided.items()) != sorted(wanted):
                raise PrunusError(
                    "method", method, "it must decide on every channel of the units that it was given, and on no other"
                )
        for name, kept in self.kept.items():
            if kept.dtype != torch.bool or not kept.any():
                raise PrunusError("method", method, f"of {name} it must keep a channel at least, by booleans")
            if not self.gates[name].isfinite().all():
                raise PrunusError("method", method, f"a gate of {name} is not finite")


class SearchMethod(Typed):
    """Base of the search methods: frozen settings, and what `Search` calls after every optimiser step t (0-based).

    While t < `search_steps`: where the method `reads`, the `evidence` of every unit is given to `observe`, which adds it to
    the state; then `decide` may move the gates. At the last of these steps the decision is final: gates of channels that go
    are shut, and those of channels that stay become part of the weights. Tensors of the state, of evidence and of decisions
    lie on one device, wherever the units do.

    A subclass writes `method: Literal["its_name"] = "its_name"` and `decide`, and is found by that name in recipes once its
    module is imported. `Budget` and `Progress` bring the settings that most methods share.
    """

    method: str
    """The name by which recipes find it."""
    include: tuple[str, ...] = ("*",)
    """Units to prune: globs over names, blocks, towers and components. `*` is all but connectors."""
    exclude: tuple[str, ...] = ()
    """Units to leave whole, likewise."""

    reads_gradients: ClassVar[bool] = True
    """Whether the evidence is a gradient: it comes by `backward` and must be finite, every weight of a unit must train, and the
    factor of a loss scaler is taken out of it."""

    def search_steps(self, total_steps: int) -> int:
        """Steps until the decision is final, T; the rest trains at the final gates."""
        return total_steps

    def reads(self, t: int, total_steps: int) -> bool:
        """Whether evidence is read after step t."""
        return True

    def unit_costs(self, units: tuple[Unit, ...]) -> dict[str, float]:
        """Cost of one channel of each unit, in which ratios are counted: its parameters."""
        return {unit.name: float(unit.channel_cost) for unit in units}

    def check(self, units: tuple[Unit, ...]) -> None:
        """Refuses, before the first step, what cannot be done to these units.

        Raises:
            PrunusError: a budget out of reach, or settings that name no unit.
        """

    def evidence(self, model: nn.Module, unit: Unit, gate: Tensor) -> Tensor | None:
        """What is read of a unit, (channels,), fp32: ∂L/∂ζ.

        Args:
            model: after `backward`, before gradients are clipped.
            gate: ζ of the forward pass, (channels,), on the device where the evidence is wanted.

        Returns:
            None if there is nothing to read, which counts as zeros.
        """
        return gate_gradient(model, unit, gate)

    def begin(self, gates: dict[str, Tensor]) -> State:
        """The state before the first step. Its kinds, units and shapes stay; `gate` and `mask` are the names of other things.

        Args:
            gates: unit → ζ (channels,), all one, to take shapes and devices from.
        """
        return {"score": {name: torch.zeros_like(gate) for name, gate in gates.items()}}

    def observe(self, state: State, found: dict[str, Tensor], units: tuple[Unit, ...]) -> None:
        """Adds the evidence of one step to the state, in place."""
        for name, value in found.items():
            state["score"][name] += value

    @abstractmethod
    def decide(self, state: State, t: int, total_steps: int, units: tuple[Unit, ...]) -> Decision | None:
        """The decision after step t; None leaves masks and gates as they are."""


def _with_name(value: Any) -> Any:
    return {"method": "upop", **value} if isinstance(value, Mapping) else value


if TYPE_CHECKING:
    AnySearch = SearchMethod
else:
    AnySearch = Annotated[named(SearchMethod, "method"), BeforeValidator(_with_name)]
"""A search method that a recipe names. Recipes of version 0.1 could leave the name out: there was one method."""
