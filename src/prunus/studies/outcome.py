"""What is known of a cell once it has been carried out, as data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prunus.errors import PrunusError
from prunus.metric import UNDECLARED, Metric
from prunus.report import Report
from prunus.storage import refuse_newer

if TYPE_CHECKING:
    from prunus.studies.study import Cell

FORMAT = "prunus.study/2"
MOST = 2.0
"""A model that is better than the dense one counts for this much at most: beside figures near zero any share can come out."""


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
    origin: str = ""
    """What tells the dense models of a study apart, but for their seeds: models of one origin differ by seed only."""
    recipe: str = ""
    """What tells the cell's recipe from others (`Cell.identity`)."""
    machine: dict[str, str] = Field(default_factory=dict)
    """Where it was carried out; nothing where an earlier version did not say."""
    seconds: float | None = None
    """That it took, with the dense model where that had to be trained."""
    chance: float | None = None
    """The headline of a model that knows nothing (`Part.chance`)."""

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
    def quality(self) -> float | None:
        """The headline as a share of the dense model's, turned so that larger is better, at most 2, both less what a model has that knows
        nothing; None where the dense model is broken, or is not better than that beyond its interval.

        Of a share of which less is better, such as an error, what is compared is what is left to one.
        """
        before, after = (turned(model[self.headline], self.metric) for model in (self.dense, self.compressed))
        if not math.isfinite(before):
            return None
        if self.chance is not None:
            floor = turned(self.chance, self.metric)
            if self.at_least() <= floor:
                return None
            before, after = before - floor, after - floor
        if math.isnan(after):  # of a broken model
            return 0.0
        return (
            share_of(after, before)
            if self.metric.higher_is_better or self.metric.unit == "share"
            else share_of(before, after)
        )

    def at_least(self) -> float:
        """What the dense model's headline is at least, turned: the end of its interval, where it has one."""
        bounds = (self.dense.get(f"{self.headline}_{end}", self.dense[self.headline]) for end in ("low", "high"))
        return min(turned(bound, self.metric) for bound in bounds)


def turned(value: float, metric: Metric) -> float:
    """A share of which less is better as one of which more is; other figures as they are."""
    return 1 - value if metric.unit == "share" and not metric.higher_is_better else value


def share_of(part: float, whole: float) -> float:
    """A quotient of two figures of which more is better, between 0 and 2, that grows with the first and is 1 where they are equal, whatever
    their signs.

    Examples:
        >>> share_of(0.5, 0.8), share_of(0.1, 0.0), share_of(-0.2, -0.1), share_of(-0.1, 0.1), share_of(0.0, 0.0)
        (0.625, 2.0, 0.5, 0.0, 1.0)
    """
    if part == whole:
        return 1.0
    if part > 0 and whole > 0:
        return min(MOST, part / whole)
    if part < 0 and whole < 0:
        return min(MOST, whole / part)
    return MOST if part > whole else 0.0


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds: 0 of a single one, NaN where one is no finite number."""
    if not all(map(math.isfinite, values)):
        return math.nan
    return stdev(values) if len(values) > 1 else 0.0


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
    def load(cls, file: str | Path) -> Results:
        """Reads the file.

        Raises:
            PrunusError: it cannot be read, or is damaged.
        """
        try:
            return cls.parse(Path(file).read_bytes(), str(file))
        except OSError as error:
            raise PrunusError(
                "results", str(file), f"it cannot be read ({error.strerror}); give the results.json of a study"
            ) from None

    @classmethod
    def parse(cls, text: str | bytes, source: str) -> Results:
        """Reads the text of such a file.

        Raises:
            PrunusError: it is damaged, or a later version wrote it.
        """
        begins = text[:200].decode(errors="replace") if isinstance(text, bytes) else text[:200]
        refuse_newer("results", begins, FORMAT)
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise PrunusError("results", source, f"the file is damaged: {error.errors()[0]['msg']}") from None


def outcome_of(report: Report, cell: Cell, machine: dict[str, str], seconds: float | None) -> Outcome:
    """The figures of a cell that was carried out, on which machine, and how long that took."""

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
        part=cell.part,
        labels=dict(cell.labels),
        seed=cell.seed,
        headline=report.headline,
        metric=report.metrics.get(report.headline, UNDECLARED),
        dense=figures(report.models["dense"]),
        compressed=figures(report.models["compressed"]),
        ratio=report.ratio,
        sparsity=report.sparsity,
        retained=report.retained,
        origin=cell.origin,
        recipe=cell.identity,
        machine=machine,
        seconds=seconds,
        chance=cell.chance,
    )


def figure_of(outcome: Outcome, figure: str) -> float | None:
    """A figure by its name: `quality`; `retained GLOB - GLOB`, the difference of two shares kept; or `retained GLOB / GLOB`, the first's share
    of their sum, ½ where both keep as much. None where the model has no such components, or the figure makes no sense.

    Raises:
        PrunusError: there is none of this name.
    """
    asked = _asked(figure)
    if asked is None:
        return outcome.quality
    first, second = (_kept(outcome, glob) for glob in asked.globs)
    if first is None or second is None:
        return None
    if asked.difference:
        return first - second
    return first / (first + second) if first + second else None


def check_figure(figure: str, field: str = "figure") -> str:
    """Refuses the name of a figure that there is not.

    Raises:
        PrunusError: see above.
    """
    _asked(figure, field)
    return figure


class _Retained(NamedTuple):
    globs: tuple[str, str]
    difference: bool


def _asked(figure: str, field: str = "figure") -> _Retained | None:
    """What a figure compares; None for the quality."""
    if figure == "quality":
        return None
    kind, _, globs = figure.partition(" ")
    for sign in (" - ", " / "):
        first, found, second = globs.partition(sign)
        if kind == "retained" and found:
            return _Retained((first.strip(), second.strip()), sign == " - ")
    raise PrunusError(field, figure, "take quality, or such as: retained *attention / *mlp")


def _kept(outcome: Outcome, glob: str) -> float | None:
    shares = [share for name, found in outcome.retained.items() if fnmatchcase(name, glob) for share in found]
    return fmean(shares) if shares else None
