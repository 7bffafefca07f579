"""Finding `growing`: how much better one method is grows along another axis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Literal

from pydantic import Field

from prunus.errors import PrunusError
from prunus.studies.findings.finding import Evidence, Finding, Mean, not_yet, together
from prunus.studies.outcome import Outcome


class Growing(Finding):
    """A figure grows along an axis: the advantage of one label over another, or one label's own figure."""

    finding: Literal["growing"] = "growing"
    label: str
    """The label that is looked at."""
    over: str | None = None
    """The label that it is compared with; None takes its figure as it is."""
    along: str
    """The axis along which it is to grow."""
    labels: tuple[str, ...] = Field(min_length=2)
    """Of that axis, in the order of growth."""

    def compared(self) -> Iterable[str]:
        return [self.label] if self.over is None else [self.label, self.over]

    def check(self, axes: Mapping[str, Set[str]], parts: Set[str]) -> None:
        super().check(axes, parts)
        for label in self.labels:
            if label not in axes.get(self.along, ()):
                raise PrunusError("along", self.along, f"the study has no such axis with a label {label}")

    def looks_at(self, labels: Mapping[str, str]) -> bool:
        return super().looks_at(labels) and labels.get(self.along) in self.labels

    def weigh(self, outcomes: Sequence[Outcome]) -> Evidence:
        heights = []
        for label in self.labels:
            own = self.values(outcomes, **{self.axis: self.label, self.along: label})
            if self.over is not None:
                other = self.values(outcomes, **{self.axis: self.over, self.along: label})
                own = {cell: own[cell] - other[cell] for cell in own.keys() & other.keys()}
            heights.append(own)
        signs, said = [], []
        for (label, low), (after, high) in zip(
            zip(self.labels, heights, strict=True), list(zip(self.labels, heights, strict=True))[1:], strict=False
        ):
            gap = Mean.of_differences(high, low)
            if gap is None:
                return not_yet(label, after)
            signs.append(gap.sign)
            said.append(f"from {label} to {after}: {gap.said()}")
        return Evidence(together(signs), "; ".join(said))
