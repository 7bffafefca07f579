"""What a figure of merit is: its unit, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from prunus.typed import Typed


class Metric(Typed):
    """How a metric is written and compared.

    Examples:
        >>> Metric().text(0.9865), Metric().change(0.9865, 0.99)
        ('98.65%', '+0.35 points')
        >>> cider = Metric(unit="plain")
        >>> cider.text(1.33), cider.change(1.33, 1.2)
        ('1.33', '-9.8%')
    """

    unit: Literal["share", "plain"] = "share"
    """`share`: of one, written in percent; `plain`: a number, written as it is."""
    higher_is_better: bool = True
    """Which way is better; tables say it where it is down."""

    def text(self, value: float) -> str:
        """The value in the metric's unit."""
        return f"{value:.2%}" if self.unit == "share" else f"{value:.2f}"

    def change(self, before: float, after: float) -> str:
        """From one value to another: of a share in points, of a plain number relative to the first."""
        if self.unit == "share":
            return f"{100 * (after - before):+.2f} points" if math.isfinite(after - before) else "–"
        return relative(before, after)

    def title(self, name: str) -> str:
        """A metric's name for tables and axes; that less is better is said, as it is not what one expects."""
        return name.replace("_", " ") + ("" if self.higher_is_better else ", lower is better")


UNDECLARED = Metric(unit="plain")
"""Of a metric about which nothing is said."""


def relative(before: float, after: float) -> str:
    """Growth in percent; a dash where there is nothing to compare with."""
    return f"{(after / before - 1):+.1%}" if before > 0 and math.isfinite(after / before) else "–"


def written(found: Mapping[str, float], metrics: Mapping[str, Metric]) -> dict[str, str]:
    """Every figure in its unit. The bounds of a figure (`…_low` and `…_high`) stand behind it, and not by themselves.

    Examples:
        >>> written({"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.61}, {"accuracy": Metric()})
        {'accuracy': '50.00% (40.00% to 61.00%)'}
    """
    texts = {}
    for name, value in found.items():
        base, _, end = name.rpartition("_")
        if end in BOUNDS and base in found:
            continue
        metric = metrics.get(name, UNDECLARED)
        texts[name] = metric.text(value)
        if all(f"{name}_{end}" in found for end in BOUNDS):
            texts[name] += " (" + " to ".join(metric.text(found[f"{name}_{end}"]) for end in BOUNDS) + ")"
    return texts


BOUNDS = ("low", "high")
"""Of a confidence interval, as the last word of a figure's name."""
