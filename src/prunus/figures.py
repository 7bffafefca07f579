"""Figures of matplotlib as files, and what several of them draw."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any


def png(figure: Any) -> bytes:
    """A `matplotlib.figure.Figure` as PNG bytes, at 120 dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def draw_kept(axes: Any, retained: Mapping[str, Sequence[float]]) -> Any:
    """Draws shares of weights kept, layers × components, with the share in every field.

    Args:
        axes: matplotlib's.
        retained: component → share kept, layer by layer.

    Returns:
        The image, for a colour bar.
    """
    depth = max(len(shares) for shares in retained.values())
    grid = [
        [shares[layer] if layer < len(shares) else math.nan for shares in retained.values()] for layer in range(depth)
    ]
    image = axes.imshow(grid, vmin=0, vmax=1, cmap="YlGn", aspect="auto")
    for layer, row in enumerate(grid):
        for column, share in enumerate(row):
            if not math.isnan(share):
                color = "white" if share > 0.7 else "black"
                axes.text(column, layer, f"{share:.0%}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(retained)), [name.replace(".", "\n") for name in retained], fontsize=8)
    axes.set_yticks(range(depth), [str(layer) for layer in range(depth)])
    axes.set_ylabel("layer")
    return image
