"""Figures of matplotlib as files, and what several of them draw."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any


def png(figure: Any) -> bytes:
    """A `matplotlib.figure.Figure` as PNG bytes, at 120 dots per inch."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing", UserWarning
        )  # names in letters that the font lacks become boxes
        figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


LAYER = 0.42
"""Inches that a layer takes in a heat map; less where there are many."""
TALLEST = 24
"""Inches of all layers at the most."""
LINE = 0.2
"""Inches that a line of text takes."""


def layer_inches(depth: int) -> float:
    """Height of one of so many layers in a heat map."""
    return min(LAYER, TALLEST / depth)


def draw_kept(axes: Any, retained: Mapping[str, Sequence[float]]) -> Any:
    """Draws shares of weights kept, layers × components, with the share in every field that has room for it.

    Args:
        axes: matplotlib's, `layer_inches` for every layer.
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
            if not math.isnan(share) and layer_inches(depth) > LINE:
                color = "white" if share > 0.7 else "black"
                axes.text(column, layer, f"{share:.0%}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(retained)), [literal(name).replace(".", "\n") for name in retained], fontsize=8)
    ticks = range(0, depth, math.ceil(LINE / layer_inches(depth)))
    axes.set_yticks(ticks, [str(layer) for layer in ticks])
    axes.set_ylabel("layer")
    return image


LONGEST = 40
"""Characters of a name that a figure has room for."""


def literal(name: str) -> str:
    """A name for a figure to show as it is: dollar signs begin no formula, and an underscore hides it from no legend. Of a long one the
    middle is left out."""
    short = name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 :]}"
    return (" " if short.startswith("_") else "") + short.replace("$", r"\$")
