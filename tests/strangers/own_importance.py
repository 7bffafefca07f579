"""An importance and a search method of one's own: channels are worth the largest gradient that their gates have had, and leave in two rounds."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from prunus import Composed, Everyone, Importance, Parts, Rounds
from prunus.anatomy import Unit
from prunus.structured import State


class LargestGradient(Importance):
    """max over steps of |∂L/∂ζ|. The smallest goes first."""

    importance: Literal["largest_gradient"] = "largest_gradient"

    def observe(self, state: State, found: dict[str, Tensor], units: tuple[Unit, ...]) -> None:
        for name, slope in found.items():
            state["score"][name] = torch.maximum(state["score"][name], slope.abs())

    def scores(self, state: State) -> dict[str, Tensor]:
        return {name: -largest for name, largest in state["score"].items()}


class TwoRounds(Composed):
    """By the largest gradient, in two rounds."""

    method: Literal["two_rounds"] = "two_rounds"

    def parts(self) -> Parts:
        return Parts(LargestGradient(), Everyone(), Rounds(rounds=2))
