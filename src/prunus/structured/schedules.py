"""How a search approaches its ratio: schedules, the ratio asked for after step t (0-based) of T as a share of the final one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from prunus.structured.budget import Ratio
from prunus.typed import Steps, Typed

ScheduleName = Literal["cosine", "linear", "concave", "sigmoid", "exponential"]


def cosine(t: int, steps: int) -> float:
    """sqrt((1 − cos(π (t+1)/T)) / 2): UPop, equation 7, with (t+1)/T for t/(T−1) so that the last step ends at one."""
    return math.sqrt((1 - math.cos(math.pi * (t + 1) / steps)) / 2)


def linear(t: int, steps: int) -> float:
    """t / (T − 1): UPop, Table 14."""
    return t / (steps - 1) if steps > 1 else 1.0


def concave(t: int, steps: int) -> float:
    """(2T − t + 1) t / ((T + 1) T), fast first: UPop, Table 14, with t counted from one so that it ends at one."""
    t += 1
    return (2 * steps - t + 1) * t / ((steps + 1) * steps)


def sigmoid(t: int, steps: int, steepness: float = 10.0) -> float:
    """A logistic curve scaled to run from zero to one: BYOP's first variant."""

    def curve(x: float) -> float:
        return 1 / (1 + math.exp(-steepness * (x - 0.5)))

    return (curve((t + 1) / steps) - curve(0)) / (curve(1) - curve(0))


def exponential(t: int, steps: int, rate: float = 5.0) -> float:
    """(1 − exp(−r (t+1)/T)) / (1 − exp(−r)): BYOP's second variant."""
    return (1 - math.exp(-rate * (t + 1) / steps)) / (1 - math.exp(-rate))


SCHEDULES: dict[ScheduleName, Callable[[int, int], float]] = {
    "cosine": cosine,
    "linear": linear,
    "concave": concave,
    "sigmoid": sigmoid,
    "exponential": exponential,
}


class Progress(Typed):
    """When a search renews its masks, and at which ratio. Mixed into a search method, before `SearchMethod`."""

    ratio: Ratio
    """The ratio at the end, p."""
    schedule: ScheduleName = "cosine"
    """How p_t grows to p."""
    interval: Steps | None = None
    """Steps between updates. None: the steps that one percent of compression takes."""
    hold: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps, at the end, that train at the final gates."""

    def search_steps(self, total_steps: int) -> int:
        """Steps until the final ratio is reached, T; the rest is the hold phase."""
        return max(1, round(total_steps * (1 - self.hold)))

    def update_interval(self, total_steps: int) -> int:
        """Steps between updates."""
        return self.interval or max(1, round(self.search_steps(total_steps) * 0.01 / self.ratio))

    def is_update(self, t: int, total_steps: int) -> bool:
        """Whether the masks are renewed after step t (0-based)."""
        steps = self.search_steps(total_steps)
        return t == steps - 1 or (t < steps and (t + 1) % self.update_interval(total_steps) == 0)

    def ratio_at(self, t: int, total_steps: int) -> float:
        """p_t, the ratio asked for after step t (0-based)."""
        steps = self.search_steps(total_steps)
        return self.ratio if t >= steps - 1 else self.ratio * min(1.0, SCHEDULES[self.schedule](t, steps))
