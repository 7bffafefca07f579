"""A search method put together of three choices: what a channel is worth, who competes with whom, and how channels leave."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from prunus.anatomy import Unit
from prunus.errors import PrunusError
from prunus.structured.budget import Budget
from prunus.structured.closing import AnyClosing, Closing
from prunus.structured.importance import AnyImportance, Importance
from prunus.structured.method import Decision, Needs, SearchMethod
from prunus.structured.scope import AnyScope, Scope
from prunus.structured.selection import cost_of, dearest, pruned_share
from prunus.structured.state import State


class Parts(NamedTuple):
    """The three choices."""

    importance: Importance
    scope: Scope
    closing: Closing


class Composed(Budget, SearchMethod):
    """Base of the methods that are three choices. One of your own needs a name and `parts`."""

    hold: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps, at the end, that train at the final gates."""

    @abstractmethod
    def parts(self) -> Parts:
        """The three choices, which follow from the settings."""

    def needs(self) -> Needs:
        importance, _, closing = self.parts()
        training = importance.training()
        return Needs(
            gradients=importance.reads_gradients, training=training, merit=closing.waits_for(), example=self.counts_an_example,
            exact=training is not None or (importance.reads_gradients and closing.straight_through),
        )  # fmt: skip

    def states_ratio(self) -> bool:
        return self._checked_parts().scope.states_ratio()

    def given_ratio(self, units: tuple[Unit, ...]) -> float | None:
        return self.parts().scope.ratio(units, self)

    def check(self, units: tuple[Unit, ...]) -> None:
        """Refuses a ratio out of reach.

        Raises:
            PrunusError: see above.
        """
        alike = {unit.name: torch.zeros(unit.channels, device="cpu") for unit in units}
        self.parts().scope.keep(alike, units, self, self.goal)

    def search_steps(self, total_steps: int) -> int:
        """Steps until the final ratio is reached, T; the rest is the hold phase."""
        return max(1, round(total_steps * (1 - self.hold)))

    def reads(self, t: int, total_steps: int) -> bool:
        importance, _, closing = self.parts()
        return importance.adds_up or closing.share(t, self.search_steps(total_steps), self.goal) is not None

    def wants_merit(self, t: int, total_steps: int) -> bool:
        return self.parts().closing.wants_merit(t, self.search_steps(total_steps), self.goal)

    def trained(self, state: State) -> dict[str, Tensor]:
        return state.get("zeta", {})

    def evidence(self, model: nn.Module, unit: Unit, gate: Tensor) -> Tensor | None:
        return self.parts().importance.evidence(model, unit, gate)

    def begin(self, gates: dict[str, Tensor]) -> State:
        importance, _, closing = self.parts()
        state = importance.begin(gates)
        if importance.training() is not None or not closing.can_return:
            state["open"] = {name: gate.clone() for name, gate in gates.items()}
        pace = closing.begin(next(iter(gates.values())).device)
        return state | ({"pace": pace} if pace else {})

    def observe(self, state: State, found: dict[str, Tensor], units: tuple[Unit, ...]) -> None:
        """Adds one step's evidence, in place. A gate is its openness times ζ, so the gradient of ζ is that of the gate times its openness."""
        importance, scope, closing = self.parts()
        if importance.training() is not None and not closing.straight_through:
            found = {name: slope * state["open"][name] for name, slope in found.items()}
        importance.observe(state, scope.at_each_step(found, units), units)

    def hear(self, state: State, merit: float) -> None:
        state["pace"]["merit"].fill_(merit)

    def decide(self, state: State, t: int, total_steps: int, units: tuple[Unit, ...]) -> Decision | None:
        """The masks and gates when a decision is due; otherwise the gates, where they train.

        Raises:
            PrunusError: nothing that would tell channels apart has been read by the last step.
        """
        importance, scope, closing = self._checked_parts()
        steps = self.search_steps(total_steps)
        share, is_last = closing.share(t, steps, self.goal), t + 1 == steps
        _check_share(closing, share, t, is_last)
        if share is not None and importance.is_silent(state):
            if is_last:
                raise PrunusError("gradient", "zero", "it was zero or not finite at every step; look at the loss")
            share = None
        if share is None:
            if importance.training() is None:
                return None
            return Decision(None, self._gates(state, state["open"]), None)
        asked = self.goal * closing.paced(state.get("pace", {}), share, is_last)
        scores = importance.scores(state)
        _check(scores, units, "importance", importance.importance)
        scores = scope.comparable(scores, units)
        _check(scores, units, "scope", scope.scope)
        gone = {} if closing.can_return else {name: opened == 0 for name, opened in state["open"].items()}
        kept = scope.keep_on(_those_first(scores, gone), units, self, asked, gone)
        Decision(kept, scores, asked).check(f"{self.method}: {scope.scope}", units)
        if is_last:
            self._check_reached(kept, units, scope)
        opened = closing.openness(kept, asked / self.goal)
        _check(opened, units, "closing", closing.closing)
        if "open" in state:
            state["open"] = opened
        return Decision(kept, self._gates(state, opened), asked)

    def _checked_parts(self) -> Parts:
        """The three choices.

        Raises:
            PrunusError: they are something else.
        """
        parts = self.parts()
        bases: tuple[type, ...] = (Importance, Scope, Closing)
        if not isinstance(parts, Parts) or not all(map(isinstance, parts, bases)):
            raise PrunusError("method", self.method, "parts must return Parts(an Importance, a Scope, a Closing)")
        return parts

    def _check_reached(self, kept: dict[str, Tensor], units: tuple[Unit, ...], scope: Scope) -> None:
        """Refuses a scope that ends elsewhere than it was asked to. (The published cut does, and shares of units yield to floors.)"""
        if self.cost == "reference" or scope.meets_every_share():
            return
        costs = self.unit_costs(units)
        reached = pruned_share(kept, costs)
        total = sum(cost_of(costs[unit.name], unit.channels) for unit in units)
        if abs(reached - self.goal) > dearest(costs.values()) * self.align / total + 1e-9:
            raise PrunusError("scope", scope.scope, f"it takes {reached:.4f} where {self.goal:.4f} is to go")

    def _gates(self, state: State, opened: dict[str, Tensor]) -> dict[str, Tensor]:
        trained = self.trained(state)
        if not trained or self.parts().closing.straight_through:
            return opened
        return {name: opened[name] * zeta.detach() for name, zeta in trained.items()}


def _check_share(closing: Closing, share: float | None, t: int, is_last: bool) -> None:
    if share is None and not is_last:
        return
    is_number = isinstance(share, int | float) and 0 <= share <= 1
    if not is_number or (is_last and share != 1):
        raise PrunusError(
            "closing", closing.closing, f"share returned {share!r} after step {t + 1}; it must be from 0 to 1, and 1 at the last step"
        )  # fmt: skip


def _check(values: object, units: tuple[Unit, ...], part: str, name: str) -> None:
    """Refuses numbers of a part that do not fit the units."""
    is_mapping = isinstance(values, Mapping) and values.keys() == {unit.name for unit in units}
    for unit in units:
        value = values[unit.name] if isinstance(values, Mapping) and is_mapping else None
        if not isinstance(value, Tensor) or value.shape != (unit.channels,) or not value.is_floating_point():
            found = type(value).__name__ if not isinstance(value, Tensor) else f"{value.dtype} {tuple(value.shape)}"
            raise PrunusError(
                part,
                name,
                f"of {unit.name} it gives {found}; it must give floats of shape ({unit.channels},) of every unit",
            )


def _those_first(scores: dict[str, Tensor], gone: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scores by which the channels that have gone go again before any other."""
    top = torch.stack([score.max() for score in scores.values()]).max()
    above = top + top.abs() + 1
    return {name: torch.where(gone[name], above, score) if name in gone else score for name, score in scores.items()}


class Structured(Composed):
    """Any importance with any scope and any closing."""

    method: Literal["structured"] = "structured"
    importance: AnyImportance
    """What a channel is worth, such as `GateGradient()`."""
    scope: AnyScope
    """Who competes with whom, such as `Everyone()`."""
    closing: AnyClosing
    """How channels leave, such as `Progressive()`."""

    @model_validator(mode="after")
    def _has_steps_to_compare(self) -> Structured:
        if self.scope.compares_steps() and (not self.importance.adds_up or self.importance.training() is not None):
            raise PrunusError(
                "scope.normalize", "step", f"{self.importance.importance} does not add up over steps; take sum, or none"
            )
        return self

    def parts(self) -> Parts:
        return Parts(self.importance, self.scope, self.closing)
