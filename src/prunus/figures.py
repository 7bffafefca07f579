"""Figures of matplotlib as files."""

from __future__ import annotations

import io
from typing import Any


def png(figure: Any) -> bytes:
    """A `matplotlib.figure.Figure` as PNG bytes, at 120 dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
