"""Tables of figures in README and docs are what the committed JSON says."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from benchmarks import ablations
from benchmarks.tables import FOLDER, ROOT, blocks, cells, drawn, pages, redrawn

FIGURE = re.compile(r"[~≤≥]*[−+-]?\d")
OTHERWISE = {
    "ablations.md": "python -m benchmarks.ablations --draw, from docs/ablations.jsonl",
    "evidence.md": "python -m benchmarks.evidence, from docs/evidence",
    "narrow.md": "python -m benchmarks.narrow_tables, from docs/measured",
    "export.md": "python -m benchmarks.export prints it",
}
"""Pages whose tables something else draws."""
NOT_MEASURED = ("default", "memory in bytes, without activations", "bytes a weight")
"""Columns of settings and formulas."""
PAGES = pages()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_what_its_json_says(page: Path) -> None:
    text = page.read_text()
    assert redrawn(text) == text, (
        "edit the JSON and run: python -m benchmarks.tables; or, to believe the page, with --take"
    )


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in OTHERWISE], ids=lambda page: page.stem)
def test_tables_of_figures_name_their_json(page: Path) -> None:
    for block in blocks(page.read_text()):
        header, _, *rows = map(cells, block.lines)
        columns = [[row[place] for row in rows if row[place]] for place in range(1, len(header))]
        figures = any(2 * sum(map(bool, map(FIGURE.match, column))) > len(column) for column in columns)
        assert block.source or not figures or any(name in header for name in NOT_MEASURED), f"line {block.first + 1}"


def test_every_json_has_a_table_and_says_what_made_it() -> None:
    shown = Counter(block.source for page in PAGES for block in blocks(page.read_text()) if block.source)
    kept = {file.name: json.loads(file.read_text()) for file in FOLDER.glob("*.json")}
    assert shown == Counter((file, name) for file, tables in kept.items() for name in tables)
    for tables in kept.values():
        for table in tables.values():
            assert table["command"]
            assert table["machine"]
            assert {len(row) for row in [table["align"], *table["rows"]]} == {len(table["columns"])}
            for script in re.findall(r"benchmarks\.(\w+)", table["command"]):
                assert (ROOT / "benchmarks" / f"{script}.py").exists()


def test_figures_that_differ_from_their_json_are_seen() -> None:
    table = {"columns": ["", "a b"], "align": ["---", "---:"], "rows": [["x", "1.0"], ["y", ""]]}
    lines = ["| | a b |", "| --- | ---: |", "| x | 1.0 |", "| y | |"]
    assert drawn(table) == lines
    page = "\n".join(["text", "<!-- figures: some.json one -->", "", *lines, "", "```", "| no table |", "```"])
    assert redrawn(page, lambda _: {"one": table}) == page
    assert redrawn(page.replace("1.0", "1.1"), lambda _: {"one": table}) == page
    assert [block.first for block in blocks(page)] == [3]
    assert cells(r"| x \| y | z | |") == [r"x \| y", "z", ""]


def test_the_ablations_are_what_their_results_say() -> None:
    assert ablations.page_of(ablations.results()) == ablations.PAGE.read_text(), (
        "run: python -m benchmarks.ablations --draw"
    )
