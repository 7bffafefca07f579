"""Every component by itself: mask-based pruning (UPop's Algorithm 2) and manual ratios (its Table 7)."""

from __future__ import annotations

from typing import Literal

from prunus.anatomy import Unit
from prunus.structured.scope.scope import Apart


class WithinComponent(Apart):
    """Channels compete with those of their component, such as all vision attentions; every component loses a share of its own."""

    scope: Literal["component"] = "component"

    def group(self, unit: Unit) -> str:
        return unit.component

    def labels(self, unit: Unit) -> tuple[str, ...]:
        return unit.tower, unit.component
