"""Pictures of a study, as PNG bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from prunus.figures import draw_kept, layer_inches, literal, png
from prunus.studies.outcome import Outcome, spread

COLOURS, MARKERS = 10, "osD^v"
"""Colours that matplotlib has before it begins again, and what then tells lines apart."""
WIDE = 20
"""Of the largest headline and the smallest: from here on the scale is logarithmic."""

COSTS: Mapping[str, Callable[[Outcome], float]] = {
    "multiply-accumulates, of the dense model's": lambda one: one.compressed["macs"] / (one.dense["macs"] or 1),
    "parameters, of the dense model's": lambda one: one.compressed["parameters"] / (one.dense["parameters"] or 1),
    "what is not zero, of the pruned matrices": lambda one: 1 - one.sparsity,
}
"""What a model costs, as a share of what the dense one does or has."""


def pictures_of(outcomes: Sequence[Outcome]) -> dict[str, bytes]:
    """Name → picture: per part, quality against costs (UPop's Figure 4); what the first method keeps, by layer and component (its Figure 3) and
    as less is kept in all (its Figure 5).
    """
    found = {}
    for part in dict.fromkeys(outcome.part for outcome in outcomes):
        inside = [outcome for outcome in outcomes if outcome.part == part]
        name = part.replace(" ", "-").replace(",", "")
        found[f"{name}-pareto.png"] = plot_pareto(inside)
        title = ": ".join(filter(None, (part, inside[0].row)))
        kept = kept_by_column([outcome for outcome in inside if outcome.row == inside[0].row])
        if kept:
            found[f"{name}-kept.png"] = plot_kept(kept, title)
        if len(kept) > 1:
            found[f"{name}-shift.png"] = plot_shift(kept, title)
    return found


def plot_pareto(outcomes: Sequence[Outcome]) -> bytes:
    """The headline over every cost that changes (`COSTS`), one line a label of the first axis, with the spread over seeds; points alone where
    most cost the same. Headlines that are `WIDE` apart are on a logarithmic scale.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    first = outcomes[0]
    costs = costs_of(outcomes)
    figure = Figure(figsize=(3 + 4 * len(costs), 4.6), layout="constrained")
    panels: Any = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, title in zip(panels, costs, strict=True):
        for number, origin in enumerate(dict.fromkeys(outcome.origin for outcome in outcomes)):
            dense = [outcome.dense[first.headline] for outcome in outcomes if outcome.origin == origin]
            axes.axhline(fmean(dense), color="0.6", linestyle="--", label=None if number else "dense")
        if first.chance is not None:
            axes.axhline(first.chance, color="0.6", linestyle=":", label="knows nothing")
        for number, label in enumerate(dict.fromkeys(outcome.row for outcome in outcomes)):
            same = [outcome for outcome in outcomes if outcome.row == label]
            shares, means, spreads = zip(*_points(same, COSTS[title]), strict=True)
            marker = MARKERS[number // COLOURS % len(MARKERS)]
            line = "-" if 2 * len({round(share, 2) for share in shares}) > len(shares) else "none"
            axes.errorbar(shares, means, yerr=spreads, marker=marker, linestyle=line, capsize=3, label=literal(label))
        axes.set_xlabel(title)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(alpha=0.3)
    if first.metric.unit == "share":
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    heights = list(filter(math.isfinite, (outcome.compressed[first.headline] for outcome in outcomes)))
    if first.metric.unit != "share" and heights and min(heights) > 0 and max(heights) > WIDE * min(heights):
        panels[0].set_yscale("log")
    panels[0].set_ylabel(literal(first.metric.title(first.headline)))
    panels[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(literal(first.part))
    return png(figure)


def costs_of(outcomes: Sequence[Outcome]) -> list[str]:
    """Those of `COSTS` that change; the first where none does."""
    changed = [title for title, share in COSTS.items() if any(abs(share(one) - 1) > 0.001 for one in outcomes)]
    return changed or list(COSTS)[:1]


def _points(outcomes: Sequence[Outcome], cost: Callable[[Outcome], float]) -> list[tuple[float, float, float]]:
    """For every column the share of the cost, the headline and its spread, by the share."""
    points = []
    for column in dict.fromkeys(outcome.column for outcome in outcomes):
        same = [outcome for outcome in outcomes if outcome.column == column]
        heights = [outcome.compressed[outcome.headline] for outcome in same]
        share = fmean(map(cost, same))
        points.append((share, fmean(heights), spread(heights)))
    return sorted(points)


Kept = Mapping[str, Sequence[float]]
"""Component → share of weights kept, block by block."""


def kept_by_column(outcomes: Sequence[Outcome]) -> dict[str, Kept]:
    """Column → what is kept of each component, means over seeds; most kept first. Columns of other components than the first are left out."""
    found: dict[str, Kept] = {}
    for column in dict.fromkeys(outcome.column for outcome in outcomes):
        same = [outcome.retained for outcome in outcomes if outcome.column == column]
        shape = {name: len(shares) for name, shares in outcomes[0].retained.items() if shares}
        same = [one for one in same if {name: len(shares) for name, shares in one.items() if shares} == shape]
        if same and shape:
            found[column] = {
                name: [fmean(layers) for layers in zip(*(one[name] for one in same), strict=True)] for name in shape
            }
    return dict(sorted(found.items(), key=lambda entry: -_mean(entry[1])))


def plot_kept(kept: Mapping[str, Kept], title: str) -> bytes:
    """Shares kept, layers × components, one panel a column."""
    from matplotlib.figure import Figure

    components = next(iter(kept.values()))
    depth = max(len(shares) for shares in components.values())
    size = (0.8 + (0.6 + 0.62 * len(components)) * len(kept), 1.5 + layer_inches(depth) * depth)
    figure = Figure(figsize=size, layout="constrained")
    panels: Any = figure.subplots(1, len(kept), squeeze=False)
    for axes, (column, shares) in zip(panels[0], kept.items(), strict=True):
        draw_kept(axes, shares)
        axes.set_title(literal(column or "share of weights kept"), fontsize=9)
    figure.suptitle(f"{literal(title)}: share of weights kept", fontsize=10)
    return png(figure)


def plot_shift(kept: Mapping[str, Kept], title: str) -> bytes:
    """How the shares kept of components, and of layers, move against their mean as less is kept."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels: Any = figure.subplots(1, 2)
    first = next(iter(kept.values()))
    whole = [_mean(one) or 1.0 for one in kept.values()]
    by_component = {
        name: [fmean(one[name]) / all_ for one, all_ in zip(kept.values(), whole, strict=True)] for name in first
    }
    by_layer = {
        f"layer {layer}": [
            fmean(shares[layer] for shares in one.values() if layer < len(shares)) / all_
            for one, all_ in zip(kept.values(), whole, strict=True)
        ]
        for layer in range(max(len(shares) for shares in first.values()))
    }
    for axes, lines in zip(panels, (by_component, by_layer), strict=True):
        for name, heights in lines.items():
            axes.plot(range(len(kept)), heights, marker="o", label=literal(name))
        axes.axhline(1.0, color="0.6", linestyle="--")
        axes.set_xticks(range(len(kept)), list(map(literal, kept)))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    panels[0].set_ylabel("share kept, over the mean of all")
    figure.suptitle(literal(title), fontsize=10)
    return png(figure)


def _mean(shares: Kept) -> float:
    return fmean(share for layers in shares.values() for share in layers)
