"""Gates that close while the ratio grows: UPop's progressive pruning (Algorithm 1), and a rate that a metric gates (BYOP)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from prunus.structured.closing.closing import Closing
from prunus.structured.closing.rate_gate import RateGate
from prunus.structured.closing.schedules import Pace


class Progressive(Pace, Closing):
    """ζ ← 1 on channels that stay and 1 − p_t/p on those that go, from scratch at every update; at the last one p_t = p."""

    closing: Literal["progressive"] = "progressive"
    can_return: ClassVar[bool] = True
    gate: RateGate | None = None
    """What the ratio waits for. None: nothing."""

    def share(self, t: int, steps: int, ratio: float) -> float | None:
        return self.way(t, steps) if self.is_due(t, steps, ratio) else None

    def openness(self, kept: dict[str, Tensor], share: float) -> dict[str, Tensor]:
        return {name: mask.float() + (~mask).float() * (1 - share) for name, mask in kept.items()}

    def waits_for(self) -> RateGate | None:
        return self.gate

    def wants_merit(self, t: int, steps: int, ratio: float) -> bool:
        return self.gate is not None and t < steps - 1 and self.is_due(t, steps, ratio)

    def begin(self, device: torch.device) -> dict[str, Tensor]:
        names = ("share", "calendar", "held", "merit", "first", "updates") if self.gate else ()
        return {name: torch.zeros(1, dtype=torch.float64, device=device) for name in names}

    def paced(self, pace: dict[str, Tensor], share: float, is_last: bool) -> float:
        if self.gate is None or is_last:
            return share
        if pace["updates"] == 0:
            pace["first"].copy_(pace["merit"])
        pace["updates"] += 1
        gone, before = float(pace["share"]), float(pace["calendar"])
        is_worse = float(pace["merit"]) < float(pace["first"]) - self.gate.tolerance
        if is_worse and pace["held"] < self.gate.patience:
            pace["held"] += 1
        else:
            pace["held"].zero_()
            gone += (1 - gone) * (share - before) / (1 - before) if before < 1 else 0.0
        pace["share"].fill_(gone)
        pace["calendar"].fill_(share)
        return gone
