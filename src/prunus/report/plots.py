"""Pictures of a run, as PNG bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from prunus.figures import draw_kept, layer_inches, literal, png
from prunus.metric import Metric


def plot_retained(retained: dict[str, list[float]]) -> bytes:
    """Heat map of the share of weights kept: layers × components, as the UPop paper's Figure 3."""
    from matplotlib.figure import Figure  # here, because it takes 30 MB that no other command needs
    from matplotlib.ticker import PercentFormatter

    depth = max(len(shares) for shares in retained.values())
    size = (1.6 + 0.85 * len(retained), 1.6 + layer_inches(depth) * depth)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    image = draw_kept(axes, retained)
    axes.set_title("share of weights kept")
    figure.colorbar(image, format=PercentFormatter(1.0))
    return png(figure)


def plot_course(courses: list[dict[str, Any]], headline: str, metric: Metric) -> bytes:
    """Loss, ratio and headline over the steps of a run, one after the other."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(8, 6.4), layout="constrained")
    names = ("training loss", "ratio pruned", literal(metric.title(headline)))
    panels: Any = figure.subplots(3, 1, sharex=True)
    offset = 0
    achieved = 0.0
    for course in courses:
        log = course["log"]
        last = max((int(row["step"]) for row in log), default=0)
        losses = [(offset + row["step"], row["loss"]) for row in log if "loss" in row]
        scores = [(offset + row["step"], row[f"eval_{headline}"]) for row in log if f"eval_{headline}" in row]
        ratios = [(offset + step, value) for step, _, value in course.get("ratio", [])]
        if ratios:
            achieved = ratios[-1][1]
        else:
            ratios = [(offset, achieved), (offset + last, achieved)]
        for axes, points in zip(panels, (losses, ratios, scores), strict=True):
            if points:
                axes.plot(*zip(*points, strict=True), marker="." if points is scores else "", color="#2f6f3e")
            axes.axvline(offset, color="0.8", linewidth=1)
        panels[0].text(offset, 1.02, f" {literal(course['step'])}", transform=panels[0].get_xaxis_transform())
        offset += last
    for axes, name in zip(panels, names, strict=True):
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    if any(
        math.isfinite(row["loss"]) and row["loss"] > 0 for course in courses for row in course["log"] if "loss" in row
    ):
        panels[0].set_yscale("log")
    for axes in panels[1:] if metric.unit == "share" else panels[1:2]:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    panels[-1].set_xlabel("step")
    return png(figure)


def plot_sides(models: Mapping[str, dict[str, Any]], headline: str, metric: Metric) -> bytes:
    """A metric of several models against parameters, latency and bytes: a point a model."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    costs = {
        "parameters": [found["parameters"]["total"] for found in models.values()],
        "latency of a batch, s": [found["latency"]["median"] for found in models.values()],
        "weights on disk, bytes": [found["bytes"] for found in models.values()],
    }
    scores = [found["metrics"][headline] for found in models.values()]
    figure = Figure(figsize=(11, 3.6 + 0.12 * len(models)), layout="constrained")
    panels: Any = figure.subplots(1, len(costs), sharey=True)
    for axes, (title, values) in zip(panels, costs.items(), strict=True):
        for place, (name, value, score) in enumerate(zip(models, values, scores, strict=True)):
            axes.plot(value, score, "o", color=f"C{place % 10}", label=literal(name))
        axes.set_xlabel(title)
        axes.set_xlim(0, 1.1 * max(values))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(literal(metric.title(headline)))
    if metric.unit == "share":
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(models), 4))
    return png(figure)
