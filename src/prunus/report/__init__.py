"""Reports: the data of a run, its table, its pictures and its page."""

from prunus.report.measured import compare
from prunus.report.report import Report, write_report
from prunus.report.table import format_metric, terminal_table

__all__ = ["Report", "compare", "format_metric", "terminal_table", "write_report"]
