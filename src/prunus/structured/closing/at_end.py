"""Everything at once, at the end: mask-based and unified pruning (UPop's Algorithms 2 and 3)."""

from __future__ import annotations

from typing import Literal

from prunus.structured.closing.closing import Closing


class AtEnd(Closing):
    """No gate is touched before the last step; then all that goes leaves at once."""

    closing: Literal["at_end"] = "at_end"

    def share(self, t: int, steps: int, ratio: float) -> float | None:
        return 1.0 if t == steps - 1 else None
