"""Draws the tables of docs/narrow.md from the figures in docs/measured: `python -m benchmarks.narrow_tables`. A test holds the page against them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import narrow_blip, narrow_quality, narrow_speed
from prunus.storage import write_text

PAGE = Path(__file__).resolve().parents[1] / "docs" / "narrow.md"
FIGURES = PAGE.parent / "measured"
DRAWN: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "narrow-blip": narrow_blip.rows_of,
    "narrow-speed": lambda rows: f"{narrow_speed.rows_of(rows)}\n\n{narrow_speed.advice(rows)}",
    "narrow-quality-stories": narrow_quality.rows_of,
    "narrow-quality-smollm2": narrow_quality.rows_of,
}
"""File of figures, and what is drawn between its marks."""


def drawn(text: str) -> str:
    """The page with its tables as the figures are; where there are none, what stands there."""
    for name, draw in DRAWN.items():
        file = FIGURES / f"{name}.json"
        if file.exists():
            made = draw(json.loads(file.read_text())["rows"])
            text = re.sub(
                rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m, made=made: f"{m[1]}\n{made}\n\n{m[2]}", text, flags=re.DOTALL
            )  # fmt: skip
    return text


if __name__ == "__main__":
    write_text(PAGE, drawn(PAGE.read_text()))
