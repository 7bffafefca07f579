"""Figures of matplotlib as files."""

from __future__ import annotations

import io
import warnings
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


LONGEST = 40
"""Characters of a name that a figure has room for."""


def literal(name: str) -> str:
    """A name for a figure to show as it is: dollar signs begin no formula, and an underscore hides it from no legend. Of a long one the
    middle is left out."""
    short = name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 :]}"
    return (" " if short.startswith("_") else "") + short.replace("$", r"\$")
