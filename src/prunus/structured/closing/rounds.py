"""In rounds with training between: iterative pruning."""

from __future__ import annotations

from typing import ClassVar, Literal

from prunus.structured.closing.closing import Closing
from prunus.typed import Count


class Rounds(Closing):
    """k rounds, evenly spread over the steps, the last at the last: after the i-th, i/k of the ratio has gone, for good; between them the rest
    trains."""

    closing: Literal["rounds"] = "rounds"
    rounds: Count = 5
    """k."""

    def share(self, t: int, steps: int, ratio: float) -> float | None:
        done = (t + 1) * self.rounds // steps
        return done / self.rounds if done > t * self.rounds // steps else None


class StraightThrough(Rounds):
    """The same rounds on gates that train: a gate is 0 or 1 in the forward pass and its gradient is ζ's, shut or not (Bengio et al., 2013;
    Sanh et al., 2020). A channel can come back at the next round."""

    closing: Literal["straight_through"] = "straight_through"  # type: ignore[assignment]
    can_return: ClassVar[bool] = True
    straight_through: ClassVar[bool] = True
