"""The structured road: gates, scores, schedules, selection, the search methods (one file each), surgery."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prunus.structured.budget import AMOUNTS, Budget
from prunus.structured.closing import AtEnd, Closing, Progressive, RateGate, Rounds, StraightThrough
from prunus.structured.composed import Composed, Parts, Structured
from prunus.structured.gate_training import GateTraining
from prunus.structured.gates import Gates, fold_gates, gate_factors, remove_gates, warn_of_gates
from prunus.structured.importance import Chance, GateGradient, Importance, Taylor, TrainedGate, WeightMagnitude
from prunus.structured.latency import LatencyTable
from prunus.structured.method import AnySearch, Decision, Needs, SearchMethod
from prunus.structured.preflight import searchable
from prunus.structured.presets import ComponentRatios, IterativeMagnitude, IterativeSTE, MaskBased, Unified, UPop
from prunus.structured.retired import reinstate, retire
from prunus.structured.scope import AnyScope, Everyone, Scope, WithinComponent, WithinUnit
from prunus.structured.search import Search
from prunus.structured.selection import Cost, cost_of, pruned_share, select
from prunus.structured.state import State
from prunus.structured.surgery import narrow
from prunus.structured.whole import Cached, Example, Price, Storage, Whole

if TYPE_CHECKING:
    from prunus.structured.callback import SearchCallback

__all__ = [
    "AMOUNTS", "AnyScope", "AnySearch", "AtEnd", "Budget", "Cached", "Chance", "Closing", "ComponentRatios", "Composed", "Cost", "Decision", "Everyone", "Example", "GateGradient",
    "GateTraining", "Gates", "Importance", "IterativeMagnitude", "IterativeSTE", "LatencyTable", "MaskBased", "Needs", "Parts", "Price", "Progressive", "RateGate",
    "Rounds", "Scope", "Search", "SearchCallback", "SearchMethod", "State", "Storage", "StraightThrough", "Structured", "Taylor",
    "TrainedGate", "UPop", "Unified", "WeightMagnitude", "Whole", "WithinComponent", "WithinUnit", "cost_of", "fold_gates", "gate_factors", "narrow", "pruned_share",
    "reinstate", "remove_gates", "retire", "searchable", "select", "warn_of_gates",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """`SearchCallback` is imported when it is asked for: it brings what the Trainer brings."""
    if name != "SearchCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.callback").SearchCallback
