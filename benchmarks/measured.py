"""Figures of benchmarks as JSON: what is there is not measured again, and tables of the documentation are drawn from what is committed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunus.storage import write_text


class Figures:
    """Rows of figures, and what they depend on; with a file, kept there one by one.

    Args:
        path: JSON to go on with; None keeps nothing.
        about: settings of which all rows are.
    """

    def __init__(self, path: Path | None, about: dict[str, Any]):
        self.path, self.about, self.rows = path, about, list[dict[str, Any]]()
        if path is not None and path.exists():
            found = json.loads(path.read_text())
            if found["about"] != about:
                raise SystemExit(f"{path} holds figures of {found['about']}; take another file")
            self.rows = found["rows"]

    def find(self, **key: Any) -> list[dict[str, Any]]:
        """The rows that have these values."""
        return found(self.rows, **key)

    def keep(self, **row: Any) -> None:
        self.rows.append(row)
        if self.path is not None:
            write_text(self.path, json.dumps({"about": self.about, "rows": self.rows}, indent=1) + "\n")


def found(rows: Sequence[dict[str, Any]], **key: Any) -> list[dict[str, Any]]:
    """The rows that have these values."""
    return [row for row in rows if all(row[name] == value for name, value in key.items())]


def by_ratio(
    rows: Sequence[dict[str, Any]], names: Iterable[str], figure: str, digits: int, more: Mapping[str, Callable[[list[dict[str, Any]]], str]]
) -> str:  # fmt: skip
    """Methods down, those that were measured, and ratios across: the mean of a figure ± its deviation over draws, and more columns."""
    ratios = sorted({row["ratio"] for row in rows if row["ratio"]})

    def cells(there: list[dict[str, Any]]) -> list[str]:
        if not there:
            return ["–"] * (1 + len(more))
        values = [row[figure] for row in there]
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return [f"{statistics.mean(values):.{digits}f}{spread}", *(say(there) for say in more.values())]

    head = ["", *(text for ratio in ratios for text in (f"{ratio:g}".lstrip("0"), *more))]
    measured = [name for name in names if found(rows, method=name)]
    lines = [[name, *(cell for r in ratios for cell in cells(found(rows, method=name, ratio=r)))] for name in measured]
    return table(head, [["dense", *cells(found(rows, method="dense")) * len(ratios)], *lines])


def mean_seconds(digits: int) -> Callable[[list[dict[str, Any]]], str]:
    """A column of `by_ratio`: the mean of what a method took; the dense model took nothing."""
    return lambda there: f"{statistics.mean(r['seconds'] for r in there):.{digits}f}" if there[0]["ratio"] else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown, numbers to the right."""
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "| --- |" + " ---: |" * (len(head) - 1), *lines[1:]])
