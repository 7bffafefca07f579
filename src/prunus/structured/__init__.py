"""The structured road: gates, scores, schedules, selection, the search methods (one file each), surgery."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prunus.structured.budget import Budget
from prunus.structured.gates import fold_gates, remove_gates, warn_of_gates
from prunus.structured.method import AnySearch, Decision, SearchMethod, State
from prunus.structured.retired import retire
from prunus.structured.schedules import Progress
from prunus.structured.search import Search
from prunus.structured.selection import select
from prunus.structured.surgery import narrow
from prunus.structured.upop import UPop

if TYPE_CHECKING:
    from prunus.structured.callback import SearchCallback

__all__ = [
    "AnySearch", "Budget", "Decision", "Progress", "Search", "SearchCallback", "SearchMethod", "State", "UPop",
    "fold_gates", "narrow", "remove_gates", "retire", "select", "warn_of_gates",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """`SearchCallback` is imported when it is asked for: it brings what the Trainer brings."""
    if name != "SearchCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.callback").SearchCallback
