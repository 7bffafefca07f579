"""Pictures of a study, as PNG bytes."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from prunus.figures import literal, png
from prunus.studies.outcome import Outcome


def pictures_of(outcomes: Sequence[Outcome]) -> dict[str, bytes]:
    """Name → picture: per part, quality against cost; and what the methods keep of attention and MLP."""
    found = {}
    for part in dict.fromkeys(outcome.part for outcome in outcomes):
        inside = [outcome for outcome in outcomes if outcome.part == part]
        found[f"{part.replace(' ', '-').replace(',', '')}-pareto.png"] = plot_pareto(inside)
    return found


def plot_pareto(outcomes: Sequence[Outcome]) -> bytes:
    """The headline over multiply-accumulates, one line a label of the first axis, with the spread over seeds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    first = outcomes[0]
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes: Any = figure.add_subplot()
    dense = [outcome.dense for outcome in outcomes]
    axes.axhline(fmean(found[first.headline] for found in dense), color="0.6", linestyle="--", label="dense")
    whole = fmean(found["macs"] for found in dense)
    for label in dict.fromkeys(outcome.row for outcome in outcomes):
        inside = [outcome for outcome in outcomes if outcome.row == label]
        points = []
        for column in dict.fromkeys(outcome.column for outcome in inside):
            same = [outcome for outcome in inside if outcome.column == column]
            heights = [outcome.compressed[first.headline] for outcome in same]
            share = fmean(outcome.compressed["macs"] for outcome in same) / whole
            points.append((share, fmean(heights), stdev(heights) if len(heights) > 1 else 0.0))
        shares, means, spreads = zip(*sorted(points), strict=True)
        axes.errorbar(shares, means, yerr=spreads, marker="o", capsize=3, label=literal(label))
    axes.set_xlabel("multiply-accumulates, of the dense model's")
    axes.set_ylabel(literal(first.metric.title(first.headline)))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    if first.metric.unit == "share":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title(literal(first.part))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return png(figure)
