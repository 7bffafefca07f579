"""Metrics have a unit and a direction, and tables, pages and files say so; reports of 0.1, which do not, still print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prunus import PrunusError
from prunus.metric import Metric
from prunus.report import Report, terminal_table, write_report
from prunus.report.page import render_page

PLAIN, LOWER = Metric(unit="plain"), Metric(unit="plain", higher_is_better=False)


def report(found: dict[str, tuple[float, float]], **more: Any) -> Report:
    columns = [
        {
            "metrics": {name: values[side] for name, values in found.items()},
            "parameters": {"vision": size, "total": 2 * size}, "multiply_accumulates": {"total": size},
            "bytes": 4 * size, "latency": {"median": size / 1000}, "peak_memory": 100 * size,
        }
        for side, size in enumerate((1000, 500))
    ]  # fmt: skip
    return Report(
        headline=next(iter(found)), ratio=0.5, models=dict(zip(("dense", "compressed"), columns, strict=True)),
        retained={"vision.mlp": [0.5, 0.25]}, courses=[{"step": "search", "log": [{"step": 5, "loss": 1.0}]}], folders={},
        versions={}, recipe={"task": {"name": "own"}, "measure": {"batch_size": 1}}, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "before", "after", "row"),
    [
        (Metric(), 0.9865, 0.9906, ("own score", "98.65%", "99.06%", "+0.41 points")),
        (PLAIN, 1.33, 1.2, ("own score", "1.33", "1.20", "-9.8%")),
        (LOWER, 20.0, 25.0, ("own score, lower is better", "20.00", "25.00", "+25.0%")),
        (PLAIN, 0.0, 2.0, ("own score", "0.00", "2.00", "–")),
        (Metric(), 0.5, float("inf"), ("own score", "50.00%", "inf%", "–")),
        (PLAIN, 0.5, float("inf"), ("own score", "0.50", "inf", "–")),
        (PLAIN, -0.5, 0.5, ("own score", "-0.50", "0.50", "–")),
    ],
)
def test_a_metric_is_written_in_its_unit(metric: Metric, before: float, after: float, row: tuple[str, ...]) -> None:
    made = report({"own_score": (before, after)}, metrics={"own_score": metric})
    assert made.rows[0] == row
    written = json.dumps(made.model_dump(mode="json"))
    assert json.loads(written)["metrics"] == {"own_score": metric.model_dump()}
    assert Report.model_validate_json(written) == made
    page, console = render_page(made, {}), Console(record=True, width=120)
    console.print(terminal_table(made.rows, made.outcome))
    said = console.export_text()
    assert all(cell in page and cell in said for cell in row)


def test_a_metric_that_nobody_declared_is_a_plain_number() -> None:
    assert report({"cider": (1.33, 1.33)}, metrics={}).rows[0] == ("cider", "1.33", "1.33", "+0.0%")


def test_reports_that_do_not_say_are_those_of_the_first_tasks(tmp_path: Path) -> None:
    found = {"accuracy": (0.5, 0.25), "accuracy_yes_no": (0.5, 0.5), "perplexity": (20.0, 30.0), "loss": (2.0, 1.0)}
    old = report(found).model_dump(mode="json")
    del old["metrics"]
    (tmp_path / "report.json").write_text(json.dumps(old))
    assert [row[1:] for row in Report.load(tmp_path).rows[:4]] == [
        ("50.00%", "25.00%", "-25.00 points"),
        ("50.00%", "50.00%", "+0.00 points"),
        ("20.00", "30.00", "+50.0%"),
        ("2.00", "1.00", "-50.0%"),
    ]


def test_the_rest_of_the_table_is_sizes_and_times() -> None:
    assert report({"loss": (1.0, 1.0)}).rows[1:] == [
        ("parameters, vision", "1k", "500", "-50.0%"),
        ("parameters, total", "2k", "1k", "-50.0%"),
        ("multiply-accumulates, total", "1k", "500", "-50.0%"),
        ("latency of one batch", "1 s", "0.5 s", "2.00 × as fast"),
        ("weights on disk", "4kB", "2kB", "-50.0%"),
        ("peak memory of a process", "100kB", "50kB", "-50.0%"),
    ]


def test_a_damaged_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrunusError, match="has not finished"):
        Report.load(tmp_path)
    (tmp_path / "report.json").write_text('{"metrics": {"loss": {"unit": "feet"}}}')
    with pytest.raises(PrunusError, match="damaged"):
        Report.load(tmp_path)


def test_a_metric_that_only_one_model_has_is_no_row() -> None:
    made = report({"score": (0.5, 0.6), "of_one": (0.1, 0.2)})
    del made.models["compressed"]["metrics"]["of_one"]
    assert [row[0] for row in made.rows[:2]] == ["score", "parameters, vision"]


def test_figures_that_are_no_numbers_are_kept_and_drawn_again(tmp_path: Path) -> None:
    made = report({"score": (float("nan"), float("inf"))}, metrics={"score": PLAIN})
    write_report(made, tmp_path)
    assert Report.load(tmp_path).rows[0] == made.rows[0] == ("score", "nan", "inf", "–")
