"""What a search method is: what it reads of a model, what it remembers of that, and when it decides."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, Self

import torch
from pydantic import BeforeValidator
from torch import Tensor, nn

from prunus.anatomy import Unit
from prunus.errors import PrunusError
from prunus.structured.closing import RateGate
from prunus.structured.gate_training import GateTraining
from prunus.structured.scores import gate_gradient
from prunus.structured.selection import Cost
from prunus.structured.state import State
from prunus.structured.whole import Whole
from prunus.typed import Typed, named


class Needs(NamedTuple):
    """What a method needs beside the model."""

    gradients: bool = True
    """Its evidence is a gradient: it comes by `backward`, must be finite, and the factor of a loss scaler is taken out of it."""
    exact: bool = False
    """∂L/∂ζ is wanted where gates are shut or negative, too. Gates then keep the outputs that they multiply; without it, it is read off the
    gradients of the weights, which all have to train."""
    training: GateTraining | None = None
    """Gates train: an optimiser for them is made like the model's."""
    merit: RateGate | None = None
    """Some decisions depend on how good the model is: what is measured, and on how much."""
    example: bool = False
    """The budget is counted on an example."""


@dataclass(frozen=True)
class Decision:
    """Which channels stay from now on, and how far every gate is open."""

    kept: dict[str, Tensor] | None
    """Unit → bool (channels,), True where the channel stays. None: as before, and only gates move."""
    gates: dict[str, Tensor]
    """Unit → ζ (channels,), the factor of each channel from the next forward pass on."""
    asked: float | None
    """The ratio that was asked for, where `kept` is decided; the achieved one is counted."""

    def check(self, method: str, units: tuple[Unit, ...]) -> None:
        """Refuses a decision that does not fit the units, which is a fault of the method that made it.

        Raises:
            PrunusError: naming the method and the unit.
        """
        wanted = [(unit.name, (unit.channels,)) for unit in units]
        for decided in (self.gates, *(() if self.kept is None else (self.kept,))):
            if not isinstance(decided, Mapping) or not all(isinstance(one, Tensor) for one in decided.values()):
                raise PrunusError(
                    "method", method, f"it must decide by tensors of every unit, not by {type(decided).__name__}"
                )
            if sorted((name, tuple(tensor.shape)) for name, tensor in decided.items()) != sorted(wanted):
                raise PrunusError(
                    "method", method, "it must decide on every channel of the units that it was given, and on no other"
                )
        for name, kept in (self.kept or {}).items():
            if kept.dtype != torch.bool or not kept.any():
                raise PrunusError("method", method, f"of {name} it must keep a channel at least, by booleans")
        if not torch.stack([gate.sum() for gate in self.gates.values()]).isfinite().all():
            name = next(
                (name for name, gate in self.gates.items() if not gate.isfinite().all()), next(iter(self.gates))
            )
            raise PrunusError("method", method, f"a gate of {name} is not finite")
        if (self.kept is None) is not (self.asked is None):
            raise PrunusError(
                "method", method, "it must say which ratio it was asked for where it decides what stays, and only there"
            )


class SearchMethod(Typed):
    """Base of the search methods: frozen settings, and what `Search` calls after every optimiser step t (0-based).

    While t < `search_steps`: where the method `reads`, the `evidence` of every unit is given to `observe`, which adds it to
    the state; then `decide` may move the gates. At the last of these steps the decision is final: gates of channels that go
    are shut, and those of channels that stay become part of the weights. Tensors of the state, of evidence and of decisions
    lie on one device, wherever the units do.

    A subclass writes `method: Literal["its_name"] = "its_name"` and `decide`, and is found by that name in recipes once its
    module is imported. `Budget` brings the settings that most methods share; `Composed` puts a method together of three choices.
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

    def needs(self) -> Needs:
        """What the method needs beside the model."""
        return Needs(gradients=self.reads_gradients)

    def fit(self, whole: Whole, units: tuple[Unit, ...]) -> Self:
        """The method as it is for one model, where its budget follows from that: what is asked from then on.

        Raises:
            PrunusError: the budget is out of reach.
        """
        return self

    def search_steps(self, total_steps: int) -> int:
        """Steps until the decision is final, T; the rest trains at the final gates."""
        return total_steps

    def reads(self, t: int, total_steps: int) -> bool:
        """Whether evidence is read after step t."""
        return True

    def unit_costs(self, units: tuple[Unit, ...]) -> dict[str, Cost]:
        """Cost of the channels of each unit, in which ratios are counted: their parameters."""
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
            gate: ζ of the forward pass, (channels,); by exact needs, a leaf with its gradient.

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

    def trained(self, state: State) -> dict[str, Tensor]:
        """Tensors of the state that train, by unit: after `observe` has left their gradients in `grad`, they are stepped."""
        return {}

    def wants_merit(self, t: int, total_steps: int) -> bool:
        """Whether the decision after step t depends on how good the model is; `hear` is told before."""
        return False

    def hear(self, state: State, merit: float) -> None:
        """Takes note of how good the model is, the larger the better."""

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
