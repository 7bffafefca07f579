"""What a channel is worth, by its weights and the data: one file a score."""

from prunus.calibrated.scores.fluctuation import Fluctuation
from prunus.calibrated.scores.gradient import GradientTimesGate
from prunus.calibrated.scores.magnitude import ChannelMagnitude
from prunus.calibrated.scores.router import RouterWeighted
from prunus.calibrated.scores.score import AnyScore, Score, Seen
from prunus.calibrated.scores.surgeon import SurgeonCost
from prunus.calibrated.scores.weighted import WeightedNorm

__all__ = [
    "AnyScore",
    "ChannelMagnitude",
    "Fluctuation",
    "GradientTimesGate",
    "RouterWeighted",
    "Score",
    "Seen",
    "SurgeonCost",
    "WeightedNorm",
]
