"""What a finding is: a claim about a study, and what its cells say of it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from pydantic import Field

from prunus.errors import PrunusError
from prunus.studies.outcome import Outcome, figure_of
from prunus.typed import Typed

Verdict = Literal["holds", "does not hold", "undecided", "no cells"]


@dataclass(frozen=True)
class Evidence:
    """What cells say of a claim."""

    verdict: Verdict
    """`undecided`: what there is lies within two standard errors."""
    said: str
    """The numbers."""


class Finding(Typed):
    """A claim that the cells of a study speak for or against."""

    finding: str
    """The kind of claim."""
    claim: str
    """In words."""
    source: str = ""
    """Where it comes from, such as UPop, Table 3."""
    axis: str
    """The axis whose labels are compared."""
    where: dict[str, str] = Field(default_factory=dict)
    """Only cells with these labels: axis → label; `part` is an axis, too."""
    figure: str = "quality"
    """What is compared: `quality` (the headline as a share of the dense model's, larger is better) or
    `retained COMPONENT - COMPONENT` (difference of two shares of weights kept, globs)."""

    @abstractmethod
    def weigh(self, outcomes: Sequence[Outcome]) -> Evidence:
        """What the cells say of it."""

    @abstractmethod
    def compared(self) -> Iterable[str]:
        """Labels of `axis` that it speaks of."""

    def check(self, axes: Mapping[str, Set[str]], parts: Set[str]) -> None:
        """Raises a `PrunusError` where it speaks of what the study does not have."""
        everything = {**axes, "part": parts}
        for axis, label in [*((self.axis, label) for label in self.compared()), *self.where.items()]:
            if axis not in everything:
                raise PrunusError("axis", axis, f"the study has the axes {', '.join(everything)}")
            if label not in everything[axis]:
                raise PrunusError(axis, label, f"the labels of this axis are {', '.join(sorted(everything[axis]))}")

    def values(self, outcomes: Sequence[Outcome], **labels: str) -> dict[tuple[str, ...], float]:
        """Whatever else a cell is (part, other labels, seed) → its figure, of the cells with these labels."""
        wanted = {**self.where, **labels}
        found = {}
        for outcome in outcomes:
            if all(outcome.label(axis) == label for axis, label in wanted.items()):
                rest = tuple(label for axis, label in outcome.everything().items() if axis not in wanted)
                found[rest] = figure_of(outcome, self.figure)
        return found


@dataclass(frozen=True)
class Difference:
    """Of two labels, cell by cell: what differs in nothing else is compared."""

    mean: float
    error: float
    """Standard error of the mean; infinite for a single pair."""
    pairs: int

    @classmethod
    def of(cls, better: Mapping[tuple[str, ...], float], worse: Mapping[tuple[str, ...], float]) -> Difference | None:
        """None where they have no cell in common."""
        gaps = [better[cell] - worse[cell] for cell in better.keys() & worse.keys()]
        if not gaps:
            return None
        error = stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.inf
        return cls(fmean(gaps), error, len(gaps))

    @property
    def sign(self) -> int:
        """+1 or -1, or 0 within two standard errors."""
        if abs(self.mean) <= 2 * self.error:
            return 0
        return 1 if self.mean > 0 else -1

    def __str__(self) -> str:
        error = "" if math.isinf(self.error) else f" ± {self.error:.3f}"
        return f"{self.mean:+.3f}{error} ({self.pairs} {'pair' if self.pairs == 1 else 'pairs'})"


def together(signs: Iterable[int]) -> Verdict:
    """The verdict of several differences that are all to be positive."""
    found = list(signs)
    if not found:
        return "no cells"
    if min(found) < 0:
        return "does not hold"
    return "holds" if min(found) > 0 else "undecided"
