"""Dense against compressed, as rows of text that the terminal and the page both show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from prunus.cost import human
from prunus.metric import UNDECLARED, Metric, relative, written

Row = tuple[str, str, str, str]
HEADER: Row = ("", "dense", "compressed", "change")


def comparison(models: Mapping[str, dict[str, Any]], metrics: Mapping[str, Metric]) -> list[Row]:
    """Rows (what, dense, compressed, change) from `Report.models`."""
    dense, small = models["dense"], models["compressed"]
    rows: list[Row] = []
    texts = {model: written(found["metrics"], metrics) for model, found in models.items()}
    for name, text in texts["dense"].items():
        if name not in small["metrics"]:  # what a task finds may depend on the model
            continue
        metric, before, after = metrics.get(name, UNDECLARED), dense["metrics"][name], small["metrics"][name]
        rows.append((metric.title(name), text, texts["compressed"][name], metric.change(before, after)))
    for title, key in (("parameters", "parameters"), ("multiply-accumulates", "multiply_accumulates")):
        towers = [name for name in dense[key] if name != "total"]
        for tower in [*towers, "total"]:
            before, after = dense[key][tower], small[key][tower]
            rows.append((f"{title}, {tower}", human(before), human(after), relative(before, after)))
    before, after = dense["latency"]["median"], small["latency"]["median"]
    times = (seconds(dense["latency"]), seconds(small["latency"]))
    rows.append(("latency of one batch", *times, f"{before / after:.2f} × as fast"))
    for title, key in (("weights on disk", "bytes"), ("peak memory of a process", "peak_memory")):
        before, after = dense[key], small[key]
        rows.append((title, human(before, "B"), human(after, "B"), relative(before, after)))
    return rows


def seconds(latency: Mapping[str, float]) -> str:
    """The median call, and the shortest and the longest."""
    low, high = latency.get("low", 0.0), latency.get("high", 0.0)
    spread = f" ({low:.3g} to {high:.3g})" if high > low else ""
    return f"{latency['median']:.3g} s{spread}"


def terminal_table(rows: Sequence[Row], title: str) -> Table:
    """The comparison as a rich table."""
    table = Table(title=Text(title), title_justify="left")
    for column, justify in zip(HEADER, ("left", "right", "right", "right"), strict=True):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*map(Text, row))
    return table
