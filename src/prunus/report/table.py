"""Dense against compressed, as rows of text that the terminal and the page both show."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from prunus.cost import human

PLAIN_METRICS = ("perplexity", "loss")
"""Metrics that are no shares of one."""
Row = tuple[str, str, str, str]
HEADER: Row = ("", "dense", "compressed", "change")


def comparison(models: dict[str, dict[str, Any]]) -> list[Row]:
    """Rows (what, dense, compressed, change) from `Report.models`."""
    dense, small = models["dense"], models["compressed"]
    rows: list[Row] = []
    for name, before in dense["metrics"].items():
        after = small["metrics"][name]
        change = _change(before, after) if name in PLAIN_METRICS else f"{100 * (after - before):+.2f} points"
        rows.append((name.replace("_", " "), format_metric(name, before), format_metric(name, after), change))
    for title, key in (("parameters", "parameters"), ("multiply-accumulates", "multiply_accumulates")):
        towers = [name for name in dense[key] if name != "total"]
        for tower in [*towers, "total"]:
            before, after = dense[key][tower], small[key][tower]
            rows.append((f"{title}, {tower}", human(before), human(after), _change(before, after)))
    before, after = dense["latency"]["median"], small["latency"]["median"]
    rows.append(("latency of one batch", f"{before:.3g} s", f"{after:.3g} s", f"{before / after:.2f} × as fast"))
    for title, key in (("weights on disk", "bytes"), ("peak memory of a process", "peak_memory")):
        before, after = dense[key], small[key]
        rows.append((title, human(before, "B"), human(after, "B"), _change(before, after)))
    return rows


def format_metric(name: str, value: float) -> str:
    """A share of one as percent, anything else as it is."""
    return f"{value:.2f}" if name in PLAIN_METRICS else f"{value:.2%}"


def _change(before: float, after: float) -> str:
    return f"{(after / before - 1):+.1%}" if before else "–"


def terminal_table(models: dict[str, dict[str, Any]], title: str) -> Table:
    """The comparison as a rich table."""
    table = Table(title=title, title_justify="left")
    for column, justify in zip(HEADER, ("left", "right", "right", "right"), strict=True):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for row in comparison(models):
        table.add_row(*row)
    return table
