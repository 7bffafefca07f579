"""Narrowing from calibration alone: scores of channels (one file each), the decision, and what is left making up for what goes."""

from prunus.calibrated.channel_scores import ChannelScores
from prunus.calibrated.consumers import consumers_of
from prunus.calibrated.depth import Depth, drop_blocks, stacks_of
from prunus.calibrated.folder import narrow_folder
from prunus.calibrated.method import Calibrated, Compensation
from prunus.calibrated.narrowing import narrow
from prunus.calibrated.plain import loadable
from prunus.calibrated.planning import plan_channels, score_channels
from prunus.calibrated.request import refuse_compensation, units_of
from prunus.calibrated.scores import (
    AnyScore,
    ChannelMagnitude,
    Fluctuation,
    GradientTimesGate,
    RouterWeighted,
    Score,
    Seen,
    SurgeonCost,
    WeightedNorm,
)
from prunus.calibrated.sweeping import Cost, Point, Sweep, sweep

__all__ = [
    "AnyScore", "Calibrated", "ChannelMagnitude", "ChannelScores", "Compensation", "Cost", "Depth", "Fluctuation", "GradientTimesGate", "Point", "RouterWeighted", "Score", "Seen",
    "SurgeonCost", "Sweep", "WeightedNorm", "consumers_of", "drop_blocks", "loadable", "narrow", "narrow_folder", "plan_channels", "refuse_compensation",
    "score_channels", "stacks_of", "sweep", "units_of",
]  # fmt: skip
