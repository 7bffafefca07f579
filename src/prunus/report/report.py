"""What a run found, as data, and the files it becomes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prunus.errors import PrunusError
from prunus.metric import UNDECLARED, Metric
from prunus.report.page import COURSE, RETAINED, SIDES, render_page
from prunus.report.plots import plot_course, plot_retained, plot_sides
from prunus.report.samples import Sample
from prunus.report.table import Row, comparison
from prunus.storage import write_bytes, write_text

_FIRST = {
    **dict.fromkeys(("accuracy", "accuracy_yes_no", "accuracy_other"), Metric()),
    **dict.fromkeys(("perplexity", "loss"), Metric(unit="plain", higher_is_better=False)),
}
"""The metrics of 0.1, whose reports do not say what they are."""


class Report(BaseModel):
    """The outcome of a run; `report.json` is this, and everything else in the folder is drawn from it."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    headline: str
    """The metric that plots show."""
    metrics: dict[str, Metric] = Field(default_factory=lambda: dict(_FIRST))
    """Unit and direction of every metric."""
    ratio: float
    """Share of the searched units' cost that left with whole channels."""
    sparsity: float = 0.0
    """Share of the weights in pruned matrices that is zero."""
    models: dict[str, dict[str, Any]]
    """"dense" and "compressed" → metrics, parameters, multiply_accumulates, bytes, latency, peak_memory."""
    retained: dict[str, list[float]]
    """Component → share of channels kept, block by block."""
    passed_over: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Whatever could have lost channels or weights → why some of it could not → share of it."""
    samples: list[Sample] = Field(default_factory=list)
    """Items of the evaluation split, with what both models make of them."""
    loading: str = ""
    """Python that loads the compressed model."""
    remarks: list[str] = []
    """What a reader of the metrics is to know of the data."""
    courses: list[dict[str, Any]]
    """Per step: its log, and for a search the course of the ratio."""
    folders: dict[str, str]
    versions: dict[str, str]
    recipe: dict[str, Any]

    @property
    def rows(self) -> list[Row]:
        """Dense against compressed: (what, dense, compressed, change)."""
        return comparison(self.models, self.metrics)

    @property
    def outcome(self) -> str:
        """What was done to the model, in a few words."""
        said = [f"{self.ratio:.1%} of the searched units' cost removed"] if self.ratio else []
        said += [f"{self.sparsity:.1%} of the weights in blocks set to zero"] if self.sparsity else []
        said += [course["said"] for course in self.courses if course.get("said")]
        return " and ".join(said) or "nothing removed"

    @classmethod
    def load(cls, folder: str | Path) -> Report:
        """Reads `report.json` of a run folder.

        Raises:
            PrunusError: there is none, or it is damaged.
        """
        path = Path(folder) / "report.json"
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError:
            raise PrunusError("run", str(folder), "it has no report.json; the run has not finished") from None
        except ValidationError as error:
            raise PrunusError("run", str(path), f"the report is damaged: {error.errors()[0]['msg']}") from None


def write_report(report: Report, folder: Path) -> None:
    """Writes `report.json`, the plots and `report.html`."""
    write_text(folder / "report.json", json.dumps(report.model_dump(mode="json"), indent=2) + "\n")
    metric = report.metrics.get(report.headline, UNDECLARED)
    plots = {SIDES: plot_sides(report.models, report.headline, metric)}
    if any(report.retained.values()):
        plots[RETAINED] = plot_retained(report.retained)
    if any(course["log"] for course in report.courses):
        plots[COURSE] = plot_course(report.courses, report.headline, metric)
    for name, picture in plots.items():
        write_bytes(folder / name, picture)
    write_text(folder / "report.html", render_page(report, plots))
