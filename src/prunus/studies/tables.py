"""The outcomes of a study as tables: methods down, budgets across, mean and spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from prunus.cost import human
from prunus.metric import Metric
from prunus.studies.outcome import Outcome, spread

WIDEST = 6
"""Columns of a part that stand beside each other; of more, only those of the last axis do."""


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


class _Layout:
    """What stands where in the table of a part: the first axis down and the others across, or all but the last axis down."""

    def __init__(self, outcomes: Sequence[Outcome]):
        columns = len(dict.fromkeys(one.column for one in outcomes))
        self._down = 1 if columns <= WIDEST else len(outcomes[0].labels) - 1
        self.prunes = any(one.sparsity for one in outcomes)
        narrows = any(one.compressed["parameters"] != one.dense["parameters"] for one in outcomes)
        self.costs = ["parameters", "MACs", "latency"] if narrows or not self.prunes else []

    def axes(self, outcome: Outcome) -> str:
        return ", ".join(list(outcome.labels)[: self._down])

    def row(self, outcome: Outcome) -> str:
        return ", ".join(list(outcome.labels.values())[: self._down])

    def column(self, outcome: Outcome) -> str:
        return ", ".join(list(outcome.labels.values())[self._down :])

    def titles(self, column: str, headline: str) -> list[str]:
        return [f"{column} {headline}".strip(), *["zeros"] * self.prunes, *self.costs]

    def dense(self, outcomes: Sequence[Outcome], metric: Metric) -> list[str]:
        """What stands of the dense model in one column."""
        if not outcomes:
            return [""] * len(self.titles("", ""))
        costs = {name: fmean(one.dense[name] for one in outcomes) for name in ("parameters", "macs", "latency")}
        written = [human(costs["parameters"]), human(costs["macs"]), f"{1000 * costs['latency']:.3g} ms"]
        values = [one.dense[one.headline] for one in outcomes]
        return [with_spread(values, metric), *[""] * self.prunes, *written[: len(self.costs)]]

    def compressed(self, outcomes: Sequence[Outcome], metric: Metric) -> list[str]:
        """What stands of a compressed one. Its latency is told by how many times as fast it is: both were timed in turn."""
        if not outcomes:
            return [""] * len(self.titles("", ""))
        parameters, macs = (fmean(one.compressed[name] for one in outcomes) for name in ("parameters", "macs"))
        faster = fmean(one.dense["latency"] / one.compressed["latency"] for one in outcomes)
        written = [human(parameters), human(macs), f"{faster:.2f} ×"]
        values = [one.compressed[one.headline] for one in outcomes]
        zeros = [f"{fmean(one.sparsity for one in outcomes):.1%}"] * self.prunes
        return [with_spread(values, metric), *zeros, *written[: len(self.costs)]]


def _table(outcomes: Sequence[Outcome]) -> TableOf:
    first, layout = outcomes[0], _Layout(outcomes)
    rows = dict.fromkeys(map(layout.row, outcomes))
    columns = list(dict.fromkeys(map(layout.column, outcomes)))
    header = [
        layout.axes(first),
        *(title for column in columns for title in layout.titles(column, first.headline)),
    ]
    body = _chance_row(first, len(header)) + _dense_rows(outcomes, columns, layout)
    for row in rows:
        texts = [row]
        for column in columns:
            inside = [one for one in outcomes if (layout.row(one), layout.column(one)) == (row, column)]
            texts += layout.compressed(inside, first.metric)
        body.append(texts)
    return TableOf(f"{first.part}: {first.metric.title(first.headline)}", header, body)


def _chance_row(outcome: Outcome, width: int) -> list[list[str]]:
    """What a model has that knows nothing, where the study says it."""
    if outcome.chance is None:
        return []
    return [["knows nothing", outcome.metric.text(outcome.chance), *[""] * (width - 2)]]


def _dense_rows(outcomes: Sequence[Outcome], columns: Sequence[str], layout: _Layout) -> list[list[str]]:
    """The dense models: one row, or, where the rows of a table start from different ones, one for those that start from the same. A column
    without figures has those of the column before.
    """
    starts: dict[str, dict[str, str]] = {}
    for outcome in outcomes:
        starts.setdefault(layout.row(outcome), {})[layout.column(outcome)] = outcome.origin
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
            inside = {
                one.seed: one
                for one in outcomes
                if layout.row(one) in rows and one.origin == origin and origin != shown
            }
            texts += layout.dense(list(inside.values()), outcomes[0].metric)
            shown = origin
        body.append(texts)
    return body


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
    return f"{mean} ± {(100 if metric.unit == 'share' else 1) * spread(values):.2f}"
