"""Reports: the data of a run, its table, its pictures and its page."""

from prunus.report.markup import document, embedded, html_table, paragraph, section
from prunus.report.measured import compare
from prunus.report.report import Report, write_report
from prunus.report.samples import Sample
from prunus.report.sides import Sides, side_by_side
from prunus.report.table import terminal_table

__all__ = [
    "Report", "Sample", "Sides", "compare", "document", "embedded", "html_table", "paragraph", "section", "side_by_side", "terminal_table",
    "write_report",
]  # fmt: skip
