"""Pictures of sparsity plans: the profile of every tower, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunus.figures import png
from prunus.plan.sparsity import SparsityPlan
from prunus.storage import write_bytes


def draw_plans(plans: SparsityPlan | Mapping[str, SparsityPlan], path: str | Path) -> None:
    """Draws the sparsity of every block, one panel a tower and one line a plan; dots are single matrices.

    Args:
        plans: one, or several of the same model under the names they have in the legend.
        path: a PNG file.
    """
    from matplotlib.figure import Figure  # here, because it takes longer to import than all of prunus.plan
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    named = {"plan": plans} if isinstance(plans, SparsityPlan) else dict(plans)
    towers = list(dict.fromkeys(m.tower for plan in named.values() for m in plan.matrices.values()))
    figure = Figure(figsize=(1 + 3.6 * len(towers), 3.4), layout="constrained")
    panels: Any = figure.subplots(1, len(towers), sharey=True, squeeze=False)
    for axes, tower in zip(panels[0], towers, strict=True):
        for name, plan in named.items():
            blocks: dict[str, list[float]] = {}
            weights: dict[str, list[int]] = {}
            for path_in_model, matrix in plan.matrices.items():
                if matrix.tower == tower:
                    block = matrix.block or path_in_model
                    blocks.setdefault(block, []).append(matrix.sparsity)
                    weights.setdefault(block, []).append(matrix.weights)
            means = [sum(s * w for s, w in zip(blocks[b], weights[b], strict=True)) / sum(weights[b]) for b in blocks]
            (line,) = axes.plot(range(len(means)), means, marker="o", markersize=3, label=name)
            for place, shares in enumerate(blocks.values()):
                if max(shares) - min(shares) > 1e-3:
                    axes.plot([place] * len(shares), shares, ".", markersize=2, alpha=0.5, color=line.get_color())
        axes.set_title(tower)
        axes.set_xlabel("block")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("sparsity")
    panels[0][0].yaxis.set_major_formatter(PercentFormatter(1.0))
    if len(named) > 1:
        panels[0][-1].legend(fontsize=8)
    write_bytes(Path(path), png(figure))
