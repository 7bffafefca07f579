"""Finding `order`: one method is better than the next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import Field

from prunus.studies.findings.finding import Evidence, Finding, Mean, not_yet, together
from prunus.studies.outcome import Outcome


class Order(Finding):
    """Every label of a list is better than the next, on the mean over all cells that differ in nothing else.

    ∀i: mean(fig(labels[i]) − fig(labels[i+1])) > 0, beyond the interval of the paired differences.
    """

    finding: Literal["order"] = "order"
    labels: tuple[str, ...] = Field(min_length=2)
    """Best first."""

    def compared(self) -> Iterable[str]:
        return self.labels

    def weigh(self, outcomes: Sequence[Outcome]) -> Evidence:
        signs, said = [], []
        for better, worse in zip(self.labels, self.labels[1:], strict=False):
            gap = Mean.of_differences(
                self.values(outcomes, **{self.axis: better}), self.values(outcomes, **{self.axis: worse})
            )
            if gap is None:
                return not_yet(better, worse)
            signs.append(gap.sign)
            said.append(f"{better} − {worse}: {gap.said()}")
        return Evidence(together(signs), "; ".join(said))
