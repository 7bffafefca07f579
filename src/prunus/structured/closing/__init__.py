"""How channels leave: one file a closing."""

from prunus.structured.closing.at_end import AtEnd
from prunus.structured.closing.closing import AnyClosing, Closing
from prunus.structured.closing.progressive import Progressive
from prunus.structured.closing.rate_gate import RateGate
from prunus.structured.closing.rounds import Rounds, StraightThrough
from prunus.structured.closing.schedules import Pace, ScheduleName

__all__ = [
    "AnyClosing",
    "AtEnd",
    "Closing",
    "Pace",
    "Progressive",
    "RateGate",
    "Rounds",
    "ScheduleName",
    "StraightThrough",
]
