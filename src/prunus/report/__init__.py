"""Reports: the data of a run, its table, its pictures and its page."""

from prunus.report.measured import compare
from prunus.report.page import STYLE, embedded, html_table
from prunus.report.report import Report, write_report
from prunus.report.sides import Sides, side_by_side
from prunus.report.table import terminal_table

__all__ = [
    "STYLE", "Report", "Sides", "compare", "embedded", "html_table", "side_by_side", "terminal_table", "write_report",
]  # fmt: skip
