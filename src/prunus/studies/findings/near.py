"""Finding `near`: one choice is about as good as another, or as the best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import Field

from prunus.studies.findings.finding import Evidence, Finding, Mean, not_yet, together
from prunus.studies.outcome import Outcome


class Near(Finding):
    """A label loses no more than a tolerance against each of the others."""

    finding: Literal["near"] = "near"
    label: str
    """The choice that is to be good enough."""
    others: tuple[str, ...] = Field(min_length=1)
    """What it is compared with."""
    within: float = Field(default=0.02, ge=0)
    """How much of the figure it may lose."""

    def compared(self) -> Iterable[str]:
        return [self.label, *self.others]

    def weigh(self, outcomes: Sequence[Outcome]) -> Evidence:
        own = self.values(outcomes, **{self.axis: self.label})
        signs, said = [], []
        for other in self.others:
            gap = Mean.of_differences(own, self.values(outcomes, **{self.axis: other}), self.within)
            if gap is None:
                return not_yet(self.label, other)
            signs.append(gap.sign)
            said.append(f"{self.label} + {self.within:g} − {other}: {gap.said()}")
        return Evidence(together(signs), "; ".join(said))
