"""The methods of the papers, each a name for three choices: one file a method."""

from prunus.structured.presets.component_ratios import ComponentRatios
from prunus.structured.presets.iterative import IterativeMagnitude, IterativeSTE
from prunus.structured.presets.mask_based import MaskBased
from prunus.structured.presets.unified import Unified
from prunus.structured.presets.upop import UPop

__all__ = ["ComponentRatios", "IterativeMagnitude", "IterativeSTE", "MaskBased", "UPop", "Unified"]
