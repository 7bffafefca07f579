"""The report as one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from statistics import fmean
from typing import TYPE_CHECKING, Any

import yaml

from prunus.errors import shortened
from prunus.metric import UNDECLARED, Metric
from prunus.report.markup import code, described, document, embedded, html_table, image, paragraph, section
from prunus.report.table import HEADER

if TYPE_CHECKING:
    from prunus.report.report import Report
    from prunus.report.samples import Sample

COURSE, RETAINED, SIDES = "course.png", "retained.png", "sides.png"
"""Files of the pictures."""
MEASURED = (
    "Behind a metric stands its 95 % interval over items, where it has one. Latency is the median of the calls, from the shortest to the longest, and it "
    "and multiply-accumulates are of one batch of {batch}, on this machine's CPU. Each model was loaded from disk by its stock transformers class, in a "
    "process of its own, and evaluated there."
)
"""How figures came about, for the pages that show them."""
LONGEST, LONGEST_NAME = 2000, 200
"""Characters that are shown of what is said of a sample, and of a picture in words; all of it stands in the JSON."""


def render_page(report: Report, plots: Mapping[str, bytes]) -> str:
    """HTML of a report.

    Args:
        plots: as many of `COURSE`, `RETAINED` and `SIDES` as there are.
    """
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    alternatives = {
        RETAINED: _said_of_retained(report.retained), COURSE: _said_of_course(report),
        SIDES: said_of_sides(report.models, report.headline, report.metrics),
    }  # fmt: skip
    drawn = {file: embedded(alternatives[file], picture) for file, picture in plots.items()}
    body = [
        html_table(HEADER, report.rows, "Dense against compressed"),
        *(paragraph(f"{remark}.") for remark in report.remarks),
        paragraph(f"{MEASURED.format(batch=report.recipe['measure']['batch_size'])} {versions}."),
        section("Samples", samples_of(report.samples)),
        section("What stays", drawn.get(RETAINED, ""), _table_of_retained(report.retained)),
        section("Passed over", *map(_table_of_passed_over, report.passed_over, report.passed_over.values())),
        section("Quality against cost", drawn.get(SIDES, "")),
        section("Course", drawn.get(COURSE, "")),
        section("Load it", code(report.loading, "Python that loads the compressed model")) if report.loading else "",
        section("Recipe", code(yaml.safe_dump(report.recipe, sort_keys=False, allow_unicode=True), "The recipe")),
    ]
    return document(f"Prunus: {report.recipe['task']['name']}, {report.outcome}", "".join(body))


def samples_of(samples: Sequence[Sample]) -> str:
    """Items with what every model makes of them, as cards; empty if there are none."""
    cards = []
    for number, sample in enumerate(samples, start=1):
        shown = " – ".join(filter(None, (sample.asked, sample.right)))
        about = shortened(f"picture of sample {number}: {shown}", LONGEST_NAME)
        pictures = "".join(image(about, picture, "jpeg") for picture in sample.pictures)
        said = ({"given": sample.asked} if sample.asked else {}) | {"right": sample.right}
        said |= {f"{model} says": text or "nothing" for model, text in sample.said.items()}
        texts = {term: shortened(text, LONGEST) for term, text in said.items()}
        cards.append(f'<li><div class="pictures">{pictures}</div>{described(texts)}</li>')
    return f'<ul class="samples">{"".join(cards)}</ul>' if cards else ""


def said_of_sides(models: Mapping[str, Mapping[str, Any]], headline: str, metrics: Mapping[str, Metric]) -> str:
    """The picture of models against their costs, in words."""
    metric = metrics.get(headline, UNDECLARED)
    found = ", ".join(f"{name} {metric.text(model['metrics'][headline])}" for name, model in models.items())
    return f"{metric.title(headline)} against parameters, latency and bytes, one point a model: {found}"


def _said_of_retained(retained: Mapping[str, Sequence[float]]) -> str:
    means = ", ".join(f"{component} {fmean(shares):.0%}" for component, shares in retained.items() if shares)
    return f"heat map of the share of weights kept, layer by layer; on average {means}"


def _said_of_course(report: Report) -> str:
    names = ", ".join(course["step"] for course in report.courses)
    return f"training loss, share pruned and {report.headline.replace('_', ' ')} over the steps of {names}"


def _table_of_retained(retained: Mapping[str, Sequence[float]]) -> str:
    """The heat map in figures, for those whom the picture is too small for."""
    rows = [
        (str(layer), *("" if share is None else f"{share:.0%}" for share in shares))
        for layer, shares in enumerate(zip_longest(*retained.values()))
    ]
    table = html_table(("layer", *retained), rows, "Share of weights kept")
    return f"<details><summary>In figures</summary>{table}</details>" if rows else ""


def _table_of_passed_over(road: str, shares: Mapping[str, float]) -> str:
    rows = [(reason, f"{share:.2%}") for reason, share in shares.items()]
    return html_table(("why", "share"), rows, road) if rows else ""
