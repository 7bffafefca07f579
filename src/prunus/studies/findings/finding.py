"""What a finding is: a claim about a study, and what its cells say of it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Literal

from pydantic import Field, field_validator

from prunus.errors import PrunusError
from prunus.studies.outcome import Outcome, check_figure, figure_of
from prunus.typed import Typed

Verdict = Literal["holds", "does not hold", "undecided", "not yet run"]
Cells = Mapping[frozenset[tuple[str, str]], float]
"""All that a cell is beside what is asked for (axis, label) → its figure."""


@dataclass(frozen=True)
class Evidence:
    """What cells say of a claim."""

    verdict: Verdict
    """`undecided`: zero lies within the interval, or there is one pair."""
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
    """What is compared: `quality` (the headline as a share of the dense model's, larger is better), `retained COMPONENT - COMPONENT`
    (difference of two shares of weights kept, globs) or `retained COMPONENT / COMPONENT` (the first's share of their sum)."""

    @field_validator("figure")
    @classmethod
    def _is_one(cls, figure: str) -> str:
        return check_figure(figure, field="")

    @abstractmethod
    def weigh(self, outcomes: Sequence[Outcome]) -> Evidence:
        """What the cells say of it."""

    @abstractmethod
    def compared(self) -> Iterable[str]:
        """Labels of `axis` that it speaks of."""

    def looks_at(self, labels: Mapping[str, str]) -> bool:
        """Whether a cell with these labels (`part` is one, too) says something of it."""
        return labels.get(self.axis) in list(self.compared()) and self.where.items() <= labels.items()

    def check(self, axes: Mapping[str, Set[str]], parts: Set[str]) -> None:
        """Raises a `PrunusError` where it speaks of what the study does not have."""
        everything = {**axes, "part": parts}
        for axis, label in [*((self.axis, label) for label in self.compared()), *self.where.items()]:
            if axis not in everything:
                raise PrunusError("axis", axis, f"the study has the axes {', '.join(everything)}")
            if label not in everything[axis]:
                raise PrunusError(axis, label, f"the labels of this axis are {', '.join(sorted(everything[axis]))}")

    def values(self, outcomes: Sequence[Outcome], **labels: str) -> Cells:
        """The figures of the cells with these labels that have one."""
        wanted = {**self.where, **labels}
        found = {}
        for outcome in outcomes:
            if all(outcome.label(axis) == label for axis, label in wanted.items()):
                rest = frozenset((axis, label) for axis, label in outcome.everything().items() if axis not in wanted)
                figure = figure_of(outcome, self.figure)
                if figure is not None:
                    found[rest] = figure
        return found


@dataclass(frozen=True)
class Mean:
    """A mean over cells, with the interval that holds the mean of all such cells 19 times out of 20 (Student's t). Where there are several parts,
    each has one vote, the mean of its cells: seeds of one task say less than other tasks do.
    """

    mean: float
    half: float
    """Half the width of the interval; infinite for a single cell."""
    cells: int
    over: str
    """How many parts and seeds the cells are of."""

    @classmethod
    def of(cls, cells: Cells) -> Mean | None:
        """None where there are no cells."""
        if not cells:
            return None
        parts: dict[str, list[float]] = {}
        for cell, value in cells.items():
            parts.setdefault(dict(cell).get("part", ""), []).append(value)
        values = list(cells.values()) if len(parts) == 1 else [fmean(votes) for votes in parts.values()]
        error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
        counts = {
            axis: len({label for cell in cells for name, label in cell if name == axis}) for axis in ("part", "seed")
        }
        over = ", ".join(f"{count} {axis}{'s' * (count != 1)}" for axis, count in counts.items() if count)
        return cls(fmean(values), student(len(values) - 1) * error if len(values) > 1 else math.inf, len(cells), over)

    @classmethod
    def of_differences(cls, better: Cells, worse: Cells, within: float = 0.0) -> Mean | None:
        """Of the differences between cells that differ in nothing else, plus `within`; None where they have no cell in common of which one
        keeps anything.
        """
        told = {cell for cell in better.keys() & worse.keys() if better[cell] or worse[cell]}
        return cls.of({cell: better[cell] + within - worse[cell] for cell in told})

    @property
    def sign(self) -> int:
        """+1 or -1, or 0 where the interval holds zero."""
        return self.against(0.0)

    def against(self, value: float) -> int:
        """+1 where it is above a value by more than half the interval, -1 where it is below."""
        gap = self.mean - value
        return 0 if abs(gap) <= self.half else 1 if gap > 0 else -1

    def said(self, noun: str = "pair", sign: str = "+") -> str:
        """In words, such as +0.125, +0.039 to +0.211 (6 pairs: 2 parts, 3 seeds)."""
        interval = (
            "" if math.isinf(self.half) else f", {self.mean - self.half:{sign}.3f} to {self.mean + self.half:{sign}.3f}"
        )
        return f"{self.mean:{sign}.3f}{interval} ({self.cells} {noun}{'s' * (self.cells != 1)}: {self.over})"


def student(degrees: int) -> float:
    """What a t of some degrees of freedom stays below 39 times out of 40: exact for one and two, else by the expansion in Abramowitz and
    Stegun, 26.7.5, to half a percent.

    Examples:
        >>> [round(student(degrees), 2) for degrees in (1, 2, 5, 30)]
        [12.71, 4.3, 2.57, 2.04]
    """
    share = 0.975
    if degrees == 1:
        return math.tan(math.pi * (share - 0.5))
    if degrees == 2:
        return (2 * share - 1) * math.sqrt(2 / (4 * share * (1 - share)))
    z = NormalDist().inv_cdf(share)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / degrees**power for power, term in enumerate(terms)))


def not_yet(*labels: str) -> Evidence:
    """Of a claim whose cells have not been carried out."""
    return Evidence(
        "not yet run",
        f"{' and '.join(labels)} have no cells in common" if len(labels) > 1 else f"{labels[0]} has no cells",
    )


def together(signs: Iterable[int]) -> Verdict:
    """The verdict of several differences that are all to be positive."""
    found = list(signs)
    if not found:
        return "not yet run"
    if min(found) < 0:
        return "does not hold"
    return "holds" if min(found) > 0 else "undecided"
