"""The outcomes of a study as tables: methods down, budgets across, mean and spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from prunus.cost import human
from prunus.metric import Metric
from prunus.studies.outcome import Outcome


@dataclass(frozen=True)
class TableOf:
    """One part of a study."""

    title: str
    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The table in Markdown, with its title as a heading."""
        lines = [self.header, ["---"] + ["---:"] * (len(self.header) - 1), *self.rows]
        return "\n".join([f"### {self.title}", "", *("| " + " | ".join(line) + " |" for line in lines)])


def tables_of(outcomes: Sequence[Outcome]) -> list[TableOf]:
    """A table for every part, in the order of the outcomes."""
    parts = dict.fromkeys(outcome.part for outcome in outcomes)
    return [_table([outcome for outcome in outcomes if outcome.part == part]) for part in parts]


def _table(outcomes: Sequence[Outcome]) -> TableOf:
    first = outcomes[0]
    rows = dict.fromkeys(outcome.row for outcome in outcomes)
    columns = dict.fromkeys(outcome.column for outcome in outcomes)
    header = [next(iter(first.labels), "")]
    header += [
        title for column in columns for title in (f"{column} {first.headline}".strip(), "parameters", "MACs", "latency")
    ]
    dense = {outcome.seed: outcome for outcome in outcomes}
    body = [["dense", *_cells(list(dense.values()), first.metric, "dense"), *[""] * (4 * len(columns) - 4)]]
    for row in rows:
        texts = [row]
        for column in columns:
            inside = [outcome for outcome in outcomes if (outcome.row, outcome.column) == (row, column)]
            texts += _cells(inside, first.metric, "compressed") if inside else [""] * 4
        body.append(texts)
    return TableOf(f"{first.part}: {first.metric.title(first.headline)}", header, body)


def _cells(outcomes: Sequence[Outcome], metric: Metric, model: str) -> list[str]:
    figures = [getattr(outcome, model) for outcome in outcomes]
    values = [found[outcome.headline] for found, outcome in zip(figures, outcomes, strict=True)]
    return [
        with_spread(values, metric),
        human(fmean(found["parameters"] for found in figures)),
        human(fmean(found["macs"] for found in figures)),
        f"{1000 * fmean(found['latency'] for found in figures):.3g} ms",
    ]


def with_spread(values: Sequence[float], metric: Metric) -> str:
    """Mean, and the standard deviation over seeds where there are several."""
    mean = metric.text(fmean(values))
    if len(values) < 2:
        return mean
    spread = stdev(values)
    return f"{mean} ± {100 * spread:.2f}" if metric.unit == "share" else f"{mean} ± {spread:.2f}"
