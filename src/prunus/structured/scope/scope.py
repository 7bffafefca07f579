"""What a scope is: who competes with whom for staying."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence, Set

import torch
from pydantic import Field
from torch import Tensor

from prunus.anatomy import Unit, by_name
from prunus.errors import PrunusError
from prunus.structured.budget import Budget
from prunus.structured.selection import cost_of, dearest, reachable
from prunus.typed import Share, Typed, named


class Scope(Typed):
    """Base of the scopes. One of your own needs a name, `scope: Literal["…"] = "…"`, and `keep`."""

    scope: str
    """The name by which recipes find it."""

    def at_each_step(self, found: dict[str, Tensor], units: tuple[Unit, ...]) -> dict[str, Tensor]:
        """What of one step's evidence is added up: as it is, unless the scope compares before that."""
        return found

    def comparable(self, scores: dict[str, Tensor], units: tuple[Unit, ...]) -> dict[str, Tensor]:
        """Scores as they are held against each other: as they are, unless kinds are put on one scale first."""
        return scores

    @abstractmethod
    def keep(
        self, scores: dict[str, Tensor], units: tuple[Unit, ...], budget: Budget, asked: float
    ) -> dict[str, Tensor]:
        """Which channels stay: unit → bool (channels,).

        Args:
            scores: unit → (channels,), comparable. The largest go first.
            budget: costs of channels, and floors.
            asked: share of the cost that is to go now; up to `budget.goal`.
        """

    def keep_on(
        self, scores: dict[str, Tensor], units: tuple[Unit, ...], budget: Budget, asked: float, gone: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:  # fmt: skip
        """As `keep`, where some channels have gone for good: unit → bool (channels,)."""
        return {
            name: mask & ~gone[name] if name in gone else mask
            for name, mask in self.keep(scores, units, budget, asked).items()
        }

    def compares_steps(self) -> bool:
        """Whether evidence is put on one scale step by step, so that it has to add up."""
        return False

    def meets_every_share(self) -> bool:
        """Whether shares of single parts count, rather than their sum."""
        return False

    def states_ratio(self) -> bool:
        """Whether the scope itself says how much is to go."""
        return False

    def ratio(self, units: tuple[Unit, ...], budget: Budget) -> float | None:
        """The share of the cost that goes at the end, where the scope itself says that."""
        return None


class Apart(Scope):
    """Base of the scopes in which groups of units do not compete with each other: each loses a share of its own."""

    ratios: dict[str, Share] = Field(default_factory=dict)
    """Share of each group that is to go, by selectors, the narrower name winning; those that none names stay whole, and `ratio` is what
    they come to. Empty: `ratio` of every one."""

    @abstractmethod
    def group(self, unit: Unit) -> str:
        """The group that a unit belongs to."""

    @abstractmethod
    def labels(self, unit: Unit) -> tuple[str, ...]:
        """What selectors of `ratios` are held against, from the widest to the narrowest."""

    def states_ratio(self) -> bool:
        return bool(self.ratios)

    def ratio(self, units: tuple[Unit, ...], budget: Budget) -> float | None:
        if not self.ratios:
            return None
        costs, shares = budget.unit_costs(units), self._shares(units, 0.0)
        wholes = {unit.name: cost_of(costs[unit.name], unit.channels) for unit in units}
        return sum(wholes[unit.name] * shares[self.group(unit)] for unit in units) / sum(wholes.values())

    def keep(
        self, scores: dict[str, Tensor], units: tuple[Unit, ...], budget: Budget, asked: float
    ) -> dict[str, Tensor]:
        return self.keep_on(scores, units, budget, asked, {})

    def keep_on(
        self, scores: dict[str, Tensor], units: tuple[Unit, ...], budget: Budget, asked: float, gone: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:  # fmt: skip
        """Every group by itself, the one with the dearest channels first. What rounding leaves over in one is the next one's, so that the sum
        is met to within one channel; or every group's own share is, to half a channel, as far as the floors let it (`meets_every_share`).
        Where all lose the same share, groups of nothing but units no wider than `align` stay whole, and the others make up for them.

        Raises:
            PrunusError: the floors leave less than `asked`.
        """
        costs, shares = budget.unit_costs(units), self._shares(units, budget.goal)
        groups: dict[str, list[str]] = {}
        for unit in sorted(units, key=lambda unit: -dearest([costs[unit.name]])):
            groups.setdefault(self.group(unit), []).append(unit.name)
        wholes = {unit.name: cost_of(costs[unit.name], unit.channels) for unit in units}
        if not self.ratios:
            shares = _made_up(
                shares, groups, wholes, {unit.name for unit in units if unit.channels <= budget.align > 1}
            )
        kept: dict[str, Tensor] = {}
        left_over = 0.0
        for group, names in groups.items():
            own, prices = {name: scores[name] for name in names}, {name: costs[name] for name in names}
            total = sum(wholes[name] for name in names)
            if shares[group] * total == 0:
                kept |= {name: torch.ones_like(score, dtype=torch.bool) for name, score in own.items()}
                continue
            most = reachable(own, prices, budget.min_channels, budget.align)
            target = shares[group] * total * asked / budget.goal
            if not self.meets_every_share() and most < target - dearest(prices.values()):
                raise _out_of_reach(group, shares[group], most / total, budget)
            due = target + left_over
            chosen = budget.select(own, prices, min(max(due, 0.0), most) / total)
            chosen = {name: mask & ~gone[name] if name in gone else mask for name, mask in chosen.items()}
            if not self.meets_every_share():
                left_over = due - sum(cost_of(prices[name], int((~chosen[name]).sum())) for name in names)
            kept |= chosen
        if left_over > dearest(costs.values()) * budget.align:
            total = sum(wholes.values())
            raise _out_of_reach("all", budget.goal, budget.goal - left_over / total, budget)
        return {unit.name: kept[unit.name] for unit in units}

    def _shares(self, units: tuple[Unit, ...], default: float) -> dict[str, float]:
        groups = {self.group(unit): self.labels(unit) for unit in units}
        if not self.ratios:
            return dict.fromkeys(groups, default)
        given = self.ratios if self.ratios.keys() <= groups.keys() else by_name(self.ratios, groups, "ratios")
        return {group: given.get(group, 0.0) for group in groups}


def _made_up(
    shares: Mapping[str, float], groups: Mapping[str, Sequence[str]], wholes: Mapping[str, float], fixed: Set[str]
) -> dict[str, float]:
    """The shares of groups, in which those of nothing but `fixed` units lose nothing, and the others as much more."""
    stay = {group for group, names in groups.items() if set(names) <= fixed}
    costs = {group: sum(wholes[name] for name in names) for group, names in groups.items()}
    free = sum(cost for group, cost in costs.items() if group not in stay)
    if not stay or not free:
        return dict(shares)
    return {group: 0.0 if group in stay else share * sum(costs.values()) / free for group, share in shares.items()}


def _out_of_reach(what: str, asked: float, most: float, budget: Budget) -> PrunusError:
    return PrunusError(
        "ratio", asked, f"of {what} at most {most:.4f} can go with min_channels={budget.min_channels} and align={budget.align}; ask for less, or "
        "lower the floors",
    )  # fmt: skip


AnyScope = named(Scope, "scope")
"""A scope that a recipe names."""
