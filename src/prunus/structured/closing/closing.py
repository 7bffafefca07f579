"""What a closing is: when channels leave, and how far their gates are open meanwhile."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from prunus.structured.closing.rate_gate import RateGate
from prunus.typed import Typed, named


class Closing(Typed):
    """Base of the closings. One of your own needs a name, `closing: Literal["…"] = "…"`, and `share`.

    Every gate is the product of two numbers: how open the closing leaves it (1 at first), and ζ where gates train.
    """

    closing: str
    """The name by which recipes find it."""

    can_return: ClassVar[bool] = False
    """Whether a channel that has gone can come back at a later decision."""
    straight_through: ClassVar[bool] = False
    """Whether gates that train are seen as if they were open: ∂L/∂gate is taken for ∂L/∂ζ, shut or not, and ζ itself multiplies nothing."""

    @abstractmethod
    def share(self, t: int, steps: int, ratio: float) -> float | None:
        """The share of the way to `ratio`, the one at the end, that has been gone after step t (0-based) of so many; None where nothing is
        decided then. It is one at the last."""

    def openness(self, kept: dict[str, Tensor], share: float) -> dict[str, Tensor]:
        """How open gates are from now on: unit → (channels,). One on channels that stay; zero on those that go."""
        return {name: mask.float() for name, mask in kept.items()}

    def waits_for(self) -> RateGate | None:
        """What some decisions wait for."""
        return None

    def wants_merit(self, t: int, steps: int, ratio: float) -> bool:
        """Whether the decision after step t waits for it."""
        return False

    def begin(self, device: torch.device) -> dict[str, Tensor]:
        """What the closing remembers: name → tensor."""
        return {}

    def paced(self, pace: dict[str, Tensor], share: float, is_last: bool) -> float:
        """The share that is asked for, where it depends on what the closing remembers, in place of the one by the calendar."""
        return share


AnyClosing = named(Closing, "closing")
"""A closing that a recipe names."""
