"""Finding `collapse`: one method keeps its quality where others lose it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from prunus.studies.findings.finding import Evidence, Finding, Mean, not_yet, together
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
        signs, said = [], []
        for label in self.compared():
            mean = Mean.of(self.values(outcomes, **{self.axis: label}))
            if mean is None:
                return not_yet(label)
            signs.append(mean.against(self.stands) if label == self.label else -mean.against(self.falls))
            said.append(f"{label} {mean.said('cell', '')}")
        return Evidence(together(signs), "; ".join(said))
