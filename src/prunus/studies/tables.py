"""The outcomes of a study as tables: methods down, budgets across, mean and spread over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from prunus.cost import human
from prunus.metric import Metric
from prunus.studies.outcome import Outcome

FIGURES = 4
"""Columns of a table for each column of a part: the headline, and what it costs."""


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
    """For every part, in the order of the outcomes: the headline and the costs, and what is kept of each component."""
    parts = dict.fromkeys(outcome.part for outcome in outcomes)
    inside = [[outcome for outcome in outcomes if outcome.part == part] for part in parts]
    return [table for part in inside for table in (_table(part), *_kept_table(part))]


def _table(outcomes: Sequence[Outcome]) -> TableOf:
    first = outcomes[0]
    rows = dict.fromkeys(outcome.row for outcome in outcomes)
    columns = dict.fromkeys(outcome.column for outcome in outcomes)
    header = [next(iter(first.labels), "")]
    header += [
        title for column in columns for title in (f"{column} {first.headline}".strip(), "parameters", "MACs", "latency")
    ]
    body = _dense_rows(outcomes, list(columns))
    for row in rows:
        texts = [row]
        for column in columns:
            inside = [outcome for outcome in outcomes if (outcome.row, outcome.column) == (row, column)]
            texts += _cells(inside, first.metric, "compressed")
        body.append(texts)
    return TableOf(f"{first.part}: {first.metric.title(first.headline)}", header, body)


def _dense_rows(outcomes: Sequence[Outcome], columns: Sequence[str]) -> list[list[str]]:
    """The dense models: one row, or, where the rows of a table start from different ones, one for those that start from the same. A column
    without figures has those of the column before.
    """
    starts: dict[str, dict[str, str]] = {}
    for outcome in outcomes:
        starts.setdefault(outcome.row, {})[outcome.column] = outcome.origin
    groups: list[tuple[list[str], dict[str, str]]] = []
    for row, origins in starts.items():
        for rows, known in groups:
            if all(known.get(column, origin) == origin for column, origin in origins.items()):
                rows.append(row)
                known.update(origins)
                break
        else:
            groups.append(([row], dict(origins)))
    body = []
    for rows, known in groups:
        texts = ["dense" if len(groups) == 1 else f"dense: {', '.join(rows)}"]
        shown: str | None = None
        for column in columns:
            origin = known.get(column, shown)
            inside = {one.seed: one for one in outcomes if one.row in rows and one.origin == origin and origin != shown}
            texts += _cells(list(inside.values()), outcomes[0].metric, "dense")
            shown = origin
        body.append(texts)
    return body


def _cells(outcomes: Sequence[Outcome], metric: Metric, model: str) -> list[str]:
    if not outcomes:
        return [""] * FIGURES
    figures: list[Mapping[str, float]] = [getattr(outcome, model) for outcome in outcomes]
    values = [found[outcome.headline] for found, outcome in zip(figures, outcomes, strict=True)]
    return [
        with_spread(values, metric),
        human(fmean(found["parameters"] for found in figures)),
        human(fmean(found["macs"] for found in figures)),
        f"{1000 * fmean(found['latency'] for found in figures):.3g} ms",
    ]


def _kept_table(outcomes: Sequence[Outcome]) -> list[TableOf]:
    """What stays of each component beside the headline, as UPop's Table 7; none where no component has a share."""
    first = outcomes[0]
    components = list(dict.fromkeys(name for outcome in outcomes for name in outcome.retained))
    if not components:
        return []
    body = []
    for labels in dict.fromkeys((outcome.row, outcome.column) for outcome in outcomes):
        inside = [outcome for outcome in outcomes if (outcome.row, outcome.column) == labels]
        shares = [[fmean(one.retained[name]) for one in inside if one.retained.get(name)] for name in components]
        values = [outcome.compressed[outcome.headline] for outcome in inside]
        body.append(
            [", ".join(filter(None, labels)), *(f"{fmean(share):.0%}" if share else "" for share in shares), with_spread(values, first.metric)]
        )  # fmt: skip
    header = [", ".join(first.labels), *components, first.headline]
    return [TableOf(f"{first.part}: what is kept of each component", header, body)]


def with_spread(values: Sequence[float], metric: Metric) -> str:
    """Mean, and the standard deviation over seeds where there are several."""
    mean = metric.text(fmean(values))
    if len(values) < 2:
        return mean
    spread = stdev(values)
    return f"{mean} ± {100 * spread:.2f}" if metric.unit == "share" else f"{mean} ± {spread:.2f}"
