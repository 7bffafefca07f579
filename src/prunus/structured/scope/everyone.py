"""One ranking over all channels of all units: unified pruning and UPop."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from prunus.anatomy import Unit
from prunus.structured.budget import Budget
from prunus.structured.scope.scope import Scope
from prunus.structured.scores import standardise

Normalize = Literal["sum", "step", "none"]
"""When scores become z-scores, within all attention units and within all MLP units."""


class Everyone(Scope):
    """All channels stand in one ranking, their scores put on one scale first (UPop, section 3.2): z-scores within attention and within MLPs."""

    scope: Literal["everyone"] = "everyone"
    normalize: Normalize = "sum"
    """z-score what has added up (the published code), every step's evidence before it is added (the paper), or nothing."""

    def compares_steps(self) -> bool:
        return self.normalize == "step"

    def at_each_step(self, found: dict[str, Tensor], units: tuple[Unit, ...]) -> dict[str, Tensor]:
        return standardise(found, units) if self.compares_steps() else found

    def comparable(self, scores: dict[str, Tensor], units: tuple[Unit, ...]) -> dict[str, Tensor]:
        return standardise(scores, units) if self.normalize == "sum" else scores

    def keep(
        self, scores: dict[str, Tensor], units: tuple[Unit, ...], budget: Budget, asked: float
    ) -> dict[str, Tensor]:
        return budget.keep(scores, units, asked)
