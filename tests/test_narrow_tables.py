"""The tables of docs/narrow.md are what the committed figures say."""

from __future__ import annotations

from benchmarks.narrow_tables import DRAWN, FIGURES, PAGE, drawn


def test_the_page_is_drawn_from_its_figures() -> None:
    assert drawn(PAGE.read_text()) == PAGE.read_text(), "run: python -m benchmarks.narrow_tables"


def test_every_table_has_its_figures() -> None:
    text = PAGE.read_text()
    named = {name for name in DRAWN if f"<!-- {name} -->\n|" in text and f"<!-- /{name} -->" in text}
    assert named == {file.stem for file in FIGURES.glob("*.json")}
