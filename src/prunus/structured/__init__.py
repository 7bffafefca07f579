"""The structured road: gates, scores, schedules, selection, the search methods (one file each), surgery."""

from prunus.structured.budget import Budget
from prunus.structured.gates import fold_gates, remove_gates, warn_of_gates
from prunus.structured.method import AnySearch, Decision, SearchMethod, State
from prunus.structured.retired import retire
from prunus.structured.schedules import Progress
from prunus.structured.search import Search
from prunus.structured.selection import select
from prunus.structured.surgery import narrow
from prunus.structured.upop import UPop

__all__ = [
    "AnySearch", "Budget", "Decision", "Progress", "Search", "SearchMethod", "State", "UPop", "fold_gates", "narrow",
    "remove_gates", "retire", "select", "warn_of_gates",
]  # fmt: skip
