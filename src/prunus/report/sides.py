"""Any saved models side by side: quality on a task, and what each costs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from prunus.anatomy import anatomy
from prunus.checkpoint import load_model, local_folder
from prunus.cost import human
from prunus.errors import PrunusError
from prunus.metric import UNDECLARED, Metric, written
from prunus.recipe import Measure
from prunus.report.markup import document, embedded, html_table, paragraph, section
from prunus.report.measured import measured
from prunus.report.page import MEASURED, said_of_sides, samples_of
from prunus.report.plots import plot_sides
from prunus.report.samples import Sample
from prunus.report.table import seconds
from prunus.storage import write_bytes, write_text
from prunus.tasks import Task
from prunus.typed import Typed


class Sides(Typed):
    """What was measured of several models, by name."""

    headline: str
    """The metric that the picture shows."""
    metrics: dict[str, Metric]
    """Unit and direction of every metric."""
    folders: dict[str, str]
    """Name → folder."""
    models: dict[str, dict[str, Any]]
    """Name → metrics, parameters, multiply_accumulates, bytes, latency, peak_memory."""
    batch_size: int = 1
    """Items of the batch that was timed and weighed."""
    samples: tuple[Sample, ...] = ()
    """Items of the evaluation split, with what every model makes of them."""

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """One a figure: what it is, and its value for every model; a dash where a model has no such figure."""
        texts = {name: written(found["metrics"], self.metrics) for name, found in self.models.items()}
        titles = list(dict.fromkeys(metric for found in texts.values() for metric in found))
        rows = [
            (self.metrics.get(metric, UNDECLARED).title(metric), *(found.get(metric, "–") for found in texts.values()))
            for metric in titles
        ]
        for title, key in (("parameters", "parameters"), ("multiply-accumulates of a batch", "multiply_accumulates")):
            rows.append((title, *(human(found[key]["total"]) for found in self.models.values())))
        rows.append(("weights on disk", *(human(found["bytes"], "B") for found in self.models.values())))
        rows.append(("latency of a batch", *(seconds(found["latency"]) for found in self.models.values())))
        rows.append(("peak memory of a process", *(human(m["peak_memory"], "B") for m in self.models.values())))
        return rows

    def table(self) -> Table:
        """The rows for a terminal."""
        table = Table()
        table.add_column("", overflow="fold")
        for name in self.models:
            table.add_column(Text(name), justify="right", overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def save(self, folder: Path) -> None:
        """Writes `comparison.json`, the picture, `comparison.png`, and a page of both, `comparison.html`."""
        write_text(folder / "comparison.json", json.dumps(self.model_dump(mode="json"), indent=2) + "\n")
        metric = self.metrics.get(self.headline, UNDECLARED)
        picture = plot_sides(self.models, self.headline, metric)
        write_bytes(folder / "comparison.png", picture)
        write_text(folder / "comparison.html", self.page(picture))

    def page(self, picture: bytes) -> str:
        """All of it as one HTML file.

        Args:
            picture: of `plot_sides`.
        """
        folders = html_table(("model", "folder"), self.folders.items(), "Where the models lie")
        return document(
            f"Prunus: {len(self.models)} models side by side",
            html_table(("", *self.models), self.rows, "Figures of every model")
            + paragraph(MEASURED.format(batch=self.batch_size))
            + section(
                "Quality against cost", embedded(said_of_sides(self.models, self.headline, self.metrics), picture)
            )
            + section("Samples", samples_of(self.samples))
            + section("Folders", folders),
        )


def side_by_side(paths: Sequence[str | Path], task: Task, measure: Measure, limit: int | None = None) -> Sides:
    """Measures saved models: quality and memory each in a process of its own, costs and latency here, in turn.

    Args:
        paths: folders or hub ids, dense or not, of one kind of model or of several.
        task: each model's own tokenizer and processor are taken, unless the task names others.
        measure: the batch that is timed and weighed, and how often.
        limit: items of the evaluation split; None takes all.

    Raises:
        PrunusError: a model is named twice, or the task is not one for it.
    """
    places = [local_folder(path) for path in paths]
    folders = dict(zip(_names([str(path) for path in paths], places), places, strict=True))
    task.check()
    task.check_split("evaluation")
    tasks = {name: task.for_model(folder) for name, folder in folders.items()}
    for name, folder in folders.items():
        tasks[name].check_model(folder)
    models = {name: load_model(folder).eval() for name, folder in folders.items()}
    parts = {name: anatomy(model) for name, model in models.items()}
    columns, samples = measured(folders, models, parts, tasks, measure, limit)
    return Sides(
        headline=task.headline, metrics=dict(task.metrics), folders={name: str(path) for name, path in folders.items()}, models=columns,
        batch_size=measure.batch_size, samples=tuple(samples),
    )  # fmt: skip


def _names(paths: Sequence[str], places: Sequence[Path]) -> list[str]:
    """The last parts of paths, as many as tell them apart.

    Args:
        places: where the models lie, each once.
    """
    seen: dict[str, str] = {}
    for path, place in zip(paths, places, strict=True):
        real = os.path.realpath(place)
        if real in seen:
            raise PrunusError("models", path, f"it is named twice, the first time as {seen[real]}; name each once")
        seen[real] = path
    parts = [Path(os.path.abspath(path) if os.path.isdir(path) else path).parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)
