"""Narrowing from calibration alone: scores of channels (one file each), the decision, and what is left making up for what goes."""

from prunus.calibrated.channel_scores import ChannelScores
from prunus.calibrated.consumers import consumers_of
from prunus.calibrated.method import Calibrated, Compensation
from prunus.calibrated.narrowing import narrow, refuse_compensation, units_of
from prunus.calibrated.plain import loadable
from prunus.calibrated.planning import plan_channels, score_channels
from prunus.calibrated.scores import (
    AnyScore,
    ChannelMagnitude,
    Fluctuation,
    RouterWeighted,
    Score,
    Seen,
    SurgeonCost,
    WeightedNorm,
)

__all__ = [
    "AnyScore", "Calibrated", "ChannelMagnitude", "ChannelScores", "Compensation", "Fluctuation", "RouterWeighted", "Score", "Seen", "SurgeonCost", "WeightedNorm",
    "consumers_of", "loadable", "narrow", "plan_channels", "refuse_compensation", "score_channels", "units_of",
]  # fmt: skip
