"""Every unit by itself: uniform ratios, or those that an allocation gives."""

from __future__ import annotations

from typing import Literal

from prunus.anatomy import Unit
from prunus.structured.scope.scope import Apart


class WithinUnit(Apart):
    """Channels compete with those of their own unit; every attention and every MLP loses a share of its own."""

    scope: Literal["unit"] = "unit"

    def group(self, unit: Unit) -> str:
        return unit.name

    def labels(self, unit: Unit) -> tuple[str, ...]:
        return unit.labels

    def meets_every_share(self) -> bool:
        return bool(self.ratios)
