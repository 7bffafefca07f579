"""Claims about studies, one file a kind."""

from typing import TYPE_CHECKING

from prunus.studies.findings.collapse import Collapse
from prunus.studies.findings.finding import Evidence, Finding
from prunus.studies.findings.growing import Growing
from prunus.studies.findings.near import Near
from prunus.studies.findings.order import Order
from prunus.typed import named

if TYPE_CHECKING:
    AnyFinding = Finding
else:
    AnyFinding = named(Finding, "finding")
"""Any finding, by its kind in a study."""

__all__ = ["AnyFinding", "Collapse", "Evidence", "Finding", "Growing", "Near", "Order"]
