"""The tables of docs/narrow.md are what the committed figures say."""

from __future__ import annotations

import pytest
from benchmarks.narrow_tables import DRAWN, FIGURES, PAGE, drawn


def test_the_page_is_drawn_from_its_figures() -> None:
    assert drawn(PAGE.read_text()) == PAGE.read_text(), "run: python -m benchmarks.narrow_tables"
    assert {file.stem for file in FIGURES.glob("*.json")} <= DRAWN.keys()


@pytest.mark.parametrize("name", DRAWN)
def test_every_table_has_its_place(name: str) -> None:
    assert PAGE.read_text().count(f"<!-- {name} -->\n") == PAGE.read_text().count(f"<!-- /{name} -->") == 1
