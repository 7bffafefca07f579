"""The structured road: gates, scores, schedules, selection, the search methods (one file each), surgery."""

from prunus.structured.budget import Budget
from prunus.structured.method import AnySearch, Decision, SearchMethod, State
from prunus.structured.schedules import Progress
from prunus.structured.search import Search
from prunus.structured.selection import select
from prunus.structured.surgery import narrow
from prunus.structured.upop import UPop

__all__ = [
    "AnySearch", "Budget", "Decision", "Progress", "Search", "SearchMethod", "State", "UPop", "narrow", "select",
]  # fmt: skip
