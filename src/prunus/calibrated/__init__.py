"""Narrowing from calibration alone: scores of channels (one file each), the decision, and what is left making up for what goes."""

from prunus.calibrated.channel_scores import ChannelScores
from prunus.calibrated.depth import Depth, drop_blocks, stacks_of
from prunus.calibrated.folder import narrow_folder
from prunus.calibrated.method import Calibrated, Compensation
from prunus.calibrated.narrowing import narrow
from prunus.calibrated.planning import plan_channels, score_channels
from prunus.calibrated.request import refuse_impossible
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
from prunus.calibrated.sweeping import Cost, Point, Sweep, refuse_budgets, sweep

__all__ = [
    "AnyScore", "Calibrated", "ChannelMagnitude", "ChannelScores", "Compensation", "Cost", "Depth", "Fluctuation", "GradientTimesGate", "Point", "RouterWeighted", "Score", "Seen",
    "SurgeonCost", "Sweep", "WeightedNorm", "drop_blocks", "narrow", "narrow_folder", "plan_channels", "refuse_budgets", "refuse_impossible",
    "score_channels", "stacks_of", "sweep",
]  # fmt: skip
