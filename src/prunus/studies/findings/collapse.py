"""Finding `collapse`: one method keeps its quality where others lose it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Literal

from prunus.studies.findings.finding import Evidence, Finding
from prunus.studies.outcome import Outcome
from prunus.typed import Share


class Collapse(Finding):
    """A label keeps at least a share of the dense model's quality, on the mean, and every other falls below another share."""

    finding: Literal["collapse"] = "collapse"
    label: str
    """What is to stand."""
    others: tuple[str, ...] = ()
    """What is to collapse."""
    stands: Share = 0.9
    """Least share of the dense quality that counts as standing."""
    falls: Share = 0.6
    """Below this share a model has collapsed."""

    def compared(self) -> Iterable[str]:
        return [self.label, *self.others]

    def weigh(self, outcomes: Sequence[Outcome]) -> Evidence:
        means = {}
        for label in self.compared():
            values = self.values(outcomes, **{self.axis: label})
            if not values:
                return Evidence("no cells", f"{label} has no cells")
            means[label] = fmean(values.values())
        said = ", ".join(f"{label} {mean:.3f}" for label, mean in means.items())
        holds = means[self.label] >= self.stands and all(means[other] < self.falls for other in self.others)
        return Evidence("holds" if holds else "does not hold", said)
