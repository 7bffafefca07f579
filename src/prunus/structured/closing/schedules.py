"""How a search approaches its ratio: schedules, the share of the way that has been gone after step t (0-based) of T."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

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


class Pace(Typed):
    """When masks are renewed on the way to a ratio, and how much of the way has been gone by then."""

    schedule: ScheduleName = "cosine"
    """How p_t grows to p."""
    interval: Steps | None = None
    """Steps between updates. None: the steps that one percent of compression takes."""

    def steps_between(self, steps: int, ratio: float) -> int:
        """Steps between updates, on the way to `ratio`."""
        return self.interval or max(1, round(steps * 0.01 / ratio))

    def is_due(self, t: int, steps: int, ratio: float) -> bool:
        """Whether the masks are renewed after step t (0-based), on the way to `ratio`."""
        return t == steps - 1 or (t + 1) % self.steps_between(steps, ratio) == 0

    def way(self, t: int, steps: int) -> float:
        """p_t/p after step t (0-based): the share of the way that has been gone."""
        return 1.0 if t >= steps - 1 else min(1.0, SCHEDULES[self.schedule](t, steps))
