"""Studies: recipes repeated with other methods, budgets and seeds, and what they say of claims."""

from prunus.studies.carrying_out import carry_out, results_of
from prunus.studies.findings import AnyFinding, Collapse, Evidence, Finding, Growing, Near, Order
from prunus.studies.outcome import Outcome, Results
from prunus.studies.page import html_page, markdown_page, weighed, write_page
from prunus.studies.pictures import pictures_of
from prunus.studies.study import Cell, Part, Study, cells_of, folder_of, load_study, study_file

__all__ = [
    "AnyFinding", "Cell", "Collapse", "Evidence", "Finding", "Growing", "Near", "Order", "Outcome", "Part", "Results", "Study",
    "carry_out", "cells_of", "folder_of", "html_page", "load_study", "markdown_page", "pictures_of", "results_of", "study_file", "weighed", "write_page",
]  # fmt: skip
