"""What is known of a cell once it has been carried out, as data."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from prunus.errors import PrunusError
from prunus.metric import UNDECLARED, Metric
from prunus.report import Report

FORMAT = "prunus.study/1"


class Outcome(BaseModel):
    """The figures of one cell."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    part: str
    labels: dict[str, str]
    """Axis → label."""
    seed: int
    headline: str
    metric: Metric
    """Of the headline."""
    dense: dict[str, float]
    """Metrics of the dense model, and parameters, macs, bytes, latency (seconds of a batch), peak_memory (bytes)."""
    compressed: dict[str, float]
    """The same of the compressed one."""
    ratio: float
    """Share of the searched units' cost that left with whole channels."""
    sparsity: float
    """Share of zeros in the pruned matrices."""
    retained: dict[str, list[float]]
    """Component → share of weights kept, block by block."""

    def label(self, axis: str) -> str | None:
        """The cell's label on an axis; `part` is one, too."""
        return self.part if axis == "part" else self.labels.get(axis)

    def everything(self) -> dict[str, str]:
        """All that tells this cell from others, by axis."""
        return {"part": self.part, **self.labels, "seed": str(self.seed)}

    @property
    def row(self) -> str:
        """Its row in a table: the label on the first axis."""
        return next(iter(self.labels.values()), "")

    @property
    def column(self) -> str:
        """Its column: the labels on the other axes."""
        return ", ".join(list(self.labels.values())[1:])

    @property
    def quality(self) -> float:
        """The headline as a share of the dense model's, turned so that larger is better."""
        before, after = self.dense[self.headline], self.compressed[self.headline]
        if math.isnan(after):  # of a broken model
            return 0.0
        small, large = (after, before) if self.metric.higher_is_better else (before, after)
        return small / large if large else float(small == large)


class Results(BaseModel):
    """All outcomes of a study, and where they come from; the committed file of a page."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    format: str = FORMAT
    title: str
    note: str
    command: str
    machine: dict[str, str]
    """Processor, cores, versions."""
    planned: int
    """Cells that the study has."""
    failed: dict[str, str]
    """Cell → why it has no outcome."""
    outcomes: list[Outcome]

    @classmethod
    def parse(cls, text: str | bytes, source: str) -> Results:
        """Reads the file.

        Raises:
            PrunusError: it is damaged.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise PrunusError("results", source, f"the file is damaged: {error.errors()[0]['msg']}") from None


def outcome_of(report: Report, part: str, labels: dict[str, str], seed: int) -> Outcome:
    """The figures of a finished run."""

    def figures(model: dict[str, Any]) -> dict[str, float]:
        return {
            **{name: value for name, value in model["metrics"].items() if isinstance(value, int | float)},
            "parameters": model["parameters"]["total"],
            "macs": model["multiply_accumulates"]["total"],
            "bytes": model["bytes"],
            "latency": model["latency"]["median"],
            "peak_memory": model["peak_memory"],
        }

    return Outcome(
        part=part,
        labels=labels,
        seed=seed,
        headline=report.headline,
        metric=report.metrics.get(report.headline, UNDECLARED),
        dense=figures(report.models["dense"]),
        compressed=figures(report.models["compressed"]),
        ratio=report.ratio,
        sparsity=report.sparsity,
        retained=report.retained,
    )


def figure_of(outcome: Outcome, figure: str) -> float:
    """A figure by its name: `quality`, or `retained GLOB - GLOB`.

    Raises:
        PrunusError: there is none of this name.
    """
    if figure == "quality":
        return outcome.quality
    kind, _, globs = figure.partition(" ")
    first, minus, second = globs.partition(" - ")
    if kind != "retained" or not minus:
        raise PrunusError("figure", figure, "take quality, or such as: retained *attention - *mlp")
    return _kept(outcome, first.strip()) - _kept(outcome, second.strip())


def _kept(outcome: Outcome, glob: str) -> float:
    shares = [share for name, found in outcome.retained.items() if fnmatchcase(name, glob) for share in found]
    if not shares:
        raise PrunusError("figure", glob, f"no such component; there are {', '.join(outcome.retained)}")
    return fmean(shares)
