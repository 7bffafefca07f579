"""The report as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import yaml

from prunus.report.table import HEADER, Row

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .25rem .9rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }
img { max-width: 100% }
pre { background: #f5f5f0; padding: 1rem; overflow: auto }
"""


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of HTML; texts are escaped."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def embedded(title: str, picture: bytes) -> str:
    """A PNG inside of HTML; the title is its alternative text."""
    return (
        f'<figure><img alt="{escape(title)}" src="data:image/png;base64,{base64.b64encode(picture).decode()}"></figure>'
    )


def render_page(report: dict[str, Any], outcome: str, rows: Sequence[Row], plots: dict[str, bytes]) -> str:
    """HTML of a report and its table; `plots` are embedded."""
    pictures = "".join(embedded(name, data) for name, data in plots.items())
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    batch = report["recipe"]["measure"]["batch_size"]
    remarks = "".join(f"<p>{escape(remark)}.</p>\n" for remark in report["remarks"])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Prunus: {escape(report["recipe"]["task"]["name"])}</title>
<style>{STYLE}</style></head><body>
<h1>Prunus: {escape(report["recipe"]["task"]["name"])}, {escape(outcome)}</h1>
{html_table(HEADER, rows)}
{remarks}<p>Latency and multiply-accumulates are of one batch of {batch}, fp32, on this machine's CPU. Each model was loaded from
disk by its stock transformers class, in a process of its own, and evaluated there. {escape(versions)}.</p>
{pictures}
<h2>Recipe</h2><pre>{escape(yaml.safe_dump(report["recipe"], sort_keys=False))}</pre>
</body></html>
"""
