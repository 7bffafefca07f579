"""The structured road: gates, scores, schedules, selection, the search methods (one file each), surgery."""

from prunus.structured.search import Search
from prunus.structured.selection import select
from prunus.structured.surgery import narrow
from prunus.structured.upop import UPop

__all__ = ["Search", "UPop", "narrow", "select"]
