"""What a channel is worth: one file an importance."""

from prunus.structured.importance.chance import Chance
from prunus.structured.importance.gate_gradient import GateGradient
from prunus.structured.importance.importance import AnyImportance, Importance
from prunus.structured.importance.magnitude import WeightMagnitude
from prunus.structured.importance.taylor import Taylor
from prunus.structured.importance.trained_gate import TrainedGate

__all__ = ["AnyImportance", "Chance", "GateGradient", "Importance", "Taylor", "TrainedGate", "WeightMagnitude"]
