"""A ranking that knows nothing: what every other one has to beat."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from prunus.structured.importance.importance import Importance
from prunus.structured.state import State
from prunus.typed import Seed


class Chance(Importance):
    """Numbers drawn before the first step."""

    importance: Literal["random"] = "random"
    seed: Seed = 0
    """Of the numbers."""
    reads_gradients: ClassVar[bool] = False
    adds_up: ClassVar[bool] = False

    def begin(self, gates: dict[str, Tensor]) -> State:
        generator = torch.Generator().manual_seed(self.seed)
        return {"drawn": {name: torch.rand(len(gate), generator=generator).to(gate) for name, gate in gates.items()}}

    def observe(self, state: State, found: object, units: object) -> None:
        """Looks at nothing."""

    def scores(self, state: State) -> dict[str, Tensor]:
        return dict(state["drawn"])
