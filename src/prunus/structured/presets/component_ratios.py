"""Manual ratios: mask-based pruning with a share for every component by hand (UPop's Table 7)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prunus.structured.closing import AtEnd
from prunus.structured.composed import Composed, Parts
from prunus.structured.gate_training import GateTraining
from prunus.structured.importance import TrainedGate
from prunus.structured.scope import WithinComponent
from prunus.typed import Share


class ComponentRatios(GateTraining, Composed):
    """Trained gates, ranked within every component, of which each loses the share that it is given."""

    method: Literal["component_ratios"] = "component_ratios"
    ratios: dict[str, Share] = Field(min_length=1)
    """Share of the channels' cost that goes, by globs over components and towers, such as `{"vision.attention": 0.78, "*.mlp": 0.4}`. The
    components that none names stay whole; `ratio` is what they come to, and need not be written."""

    def parts(self) -> Parts:
        return Parts(TrainedGate.like(self), WithinComponent(ratios=self.ratios), AtEnd())
