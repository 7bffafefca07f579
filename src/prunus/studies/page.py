"""A study as a page of Markdown, and as one of HTML; both are drawn from its results alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from prunus.report import document, embedded, html_table, paragraph, section
from prunus.storage import write_bytes, write_text
from prunus.studies.findings import Evidence, Finding
from prunus.studies.outcome import Results
from prunus.studies.pictures import pictures_of
from prunus.studies.tables import TableOf, tables_of

FINDINGS = ("claim", "source", "verdict", "evidence (mean over pairs of cells, its 95% interval)")


def write_page(results: Results, findings: Sequence[Finding], folder: Path) -> Path:
    """Draws a study into its folder: `study.md` with pictures beside it, and `study.html`.

    Returns:
        The page of HTML.
    """
    pictures = pictures_of(results.outcomes)
    for name, picture in pictures.items():
        write_bytes(folder / name, picture)
    write_text(folder / "study.md", markdown_page(results, findings, pictures))
    page = folder / "study.html"
    write_text(page, html_page(results, findings, pictures))
    return page


def weighed(results: Results, findings: Sequence[Finding]) -> list[tuple[Finding, Evidence]]:
    """Every finding with what the cells say of it."""
    return [(finding, finding.weigh(results.outcomes)) for finding in findings]


def markdown_page(results: Results, findings: Sequence[Finding], pictures: Iterable[str] = ()) -> str:
    """The page in Markdown.

    Args:
        pictures: their paths beside the page.
    """
    lines = [f"## {results.title}", "", results.note, "", _provenance(results), ""]
    for table in _tables(results, findings):
        lines += [table.markdown(), ""]
    if results.failed:
        lines += ["### Failed cells", "", *(f"- {cell}: {why}" for cell, why in results.failed.items()), ""]
    lines += [f"![{_title(picture)}]({picture})\n" for picture in pictures]
    return "\n".join(lines).rstrip() + "\n"


def html_page(results: Results, findings: Sequence[Finding], pictures: Mapping[str, bytes]) -> str:
    """The page as one HTML file that needs nothing beside it."""
    tables = _tables(results, findings)
    failed = "".join(f"<li>{escape(cell)}: {escape(why)}</li>" for cell, why in results.failed.items())
    body = [
        paragraph(results.note),
        paragraph(_provenance(results)),
        section("Failed cells", f"<ul>{failed}</ul>" if failed else ""),
        section("Findings and figures", *(html_table(one.header, one.rows, one.title) for one in tables)),
        section(
            "Quality against cost",
            *(
                embedded(f"{_title(name)}, of which the tables have the figures", data)
                for name, data in pictures.items()
            ),
        ),
    ]
    return document(results.title, "".join(body))


def _tables(results: Results, findings: Sequence[Finding]) -> list[TableOf]:
    """The findings, if there are any, and a table for every part."""
    found = [
        [finding.claim, finding.source, evidence.verdict, evidence.said]
        for finding, evidence in weighed(results, findings)
    ]
    return [TableOf("Findings", list(FINDINGS), found)] * bool(found) + tables_of(results.outcomes)


def _provenance(results: Results) -> str:
    said = [f"Command: {results.command}."] if results.command else []
    said.append(f"{len(results.outcomes)} of {results.planned} cells.")
    took = [one.seconds for one in results.outcomes if one.seconds is not None]
    if took:
        some = "They" if len(took) == len(results.outcomes) else f"{len(took)} of them"
        said.append(f"{some} took {sum(took) / 3600:.1f} hours, one after the other.")
    places = Counter(tuple((one.machine or results.machine).items()) for one in results.outcomes)
    for place, count in places.items() if results.outcomes else [(tuple(results.machine.items()), 0)]:
        said.append(f"{f'{count} of them: ' if len(places) > 1 else ''}{_machine(place)}." if place else "")
    return " ".join(filter(None, said))


def _machine(place: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{name} {value}" for name, value in place)


def _title(picture: str) -> str:
    return picture.rpartition("/")[2].removesuffix(".png").replace("-", " ").replace("_", " ")
