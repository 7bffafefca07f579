"""Tables of measured figures in README and docs, drawn from the JSON in docs/evidence/tables: `python -m benchmarks.tables`.

A line before a table names its JSON and the table in it:

    <!-- figures: allocation.json cost -->

The JSON has, by the table's name, what made it (`command`), where (`machine`), the `columns`, how they are aligned, and the `rows`, all as they are written.
Whoever measures again edits the JSON, and this draws the pages; or a script draws the page, and `--take` reads the JSON from it. A test fails where
a page and its JSON differ, and where a table of figures has no such line.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus.storage import write_text

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "evidence" / "tables"
MARK = re.compile(r"^<!-- figures: (\S+\.json) (\S+) -->$")
CELLS = re.compile(r"(?<!\\)\|")
"""Between two cells; a bar that belongs to a cell is written with a backslash."""


def pages() -> list[Path]:
    """README and all of docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A table of a page."""

    first: int
    """Its first line, from zero."""
    lines: list[str]
    source: tuple[str, str] | None
    """JSON and name, where a line before it names them."""


def blocks(text: str) -> Iterator[Block]:
    """The tables of a page, code apart."""
    lines, start, code, source = text.split("\n"), None, False, None
    for number, line in enumerate([*lines, ""]):
        code ^= line.startswith("```")
        if start is None and line.startswith("|") and not code:
            start = number
            before = next((one for one in reversed(lines[:number]) if one), "")
            found = MARK.match(before)
            source = (found[1], found[2]) if found else None
        elif start is not None and not line.startswith("|"):
            yield Block(start, lines[start:number], source)
            start = None


def cells(line: str) -> list[str]:
    """Of a line of a table."""
    return [cell.strip() for cell in CELLS.split(line.strip())[1:-1]]


def drawn(table: dict[str, Any]) -> list[str]:
    """The lines of a table."""
    return [_line(table["columns"]), _line(table["align"]), *map(_line, table["rows"])]


def _line(texts: Sequence[str]) -> str:
    return "|" + "|".join(f" {text} " if text else " " for text in texts) + "|"


def redrawn(text: str, read: Any = None) -> str:
    """A page with the tables of its JSON."""
    read = read or (lambda name: json.loads((FOLDER / name).read_text()))
    lines = text.split("\n")
    for block in reversed([block for block in blocks(text) if block.source]):
        assert block.source is not None
        file, name = block.source
        lines[block.first : block.first + len(block.lines)] = drawn(read(file)[name])
    return "\n".join(lines)


def take(text: str) -> None:
    """Writes the JSON of a page's tables. A new one gets the command that stands nearest before it."""
    lines = text.split("\n")
    for block in blocks(text):
        if block.source is None:
            continue
        file, name = block.source
        path = FOLDER / file
        found = json.loads(path.read_text()) if path.exists() else {}
        header, align, *rows = map(cells, block.lines)
        said = re.findall(r"`(python -m benchmarks\.[^`]+|prunus [^`]+|make demo)`", "\n".join(lines[: block.first]))
        new = {"command": said[-1] if said else "", "machine": ""}
        found[name] = {**new, **found.get(name, {}), "columns": header, "align": align, "rows": rows}
        write_text(path, written(found))


def written(tables: dict[str, Any]) -> str:
    """The JSON with a row a line."""
    parts = []
    for name, table in tables.items():
        head = "".join(
            f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)},\n"
            for key, value in table.items()
            if key != "rows"
        )
        rows = ",\n".join(f"   {json.dumps(row, ensure_ascii=False)}" for row in table["rows"])
        parts.append(f' {json.dumps(name)}: {{\n{head}  "rows": [\n{rows}\n  ]\n }}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--take", action="store_true", help="read the JSON from the pages, instead of drawing them")
    taking = parser.parse_args().take
    for page in pages():
        text = page.read_text()
        if taking:
            take(text)
        elif redrawn(text) != text:
            write_text(page, redrawn(text))


if __name__ == "__main__":
    main()
