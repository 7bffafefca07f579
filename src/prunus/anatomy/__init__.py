"""What a model is made of. Imports nothing of ours but the error type."""

from prunus.anatomy.discover import anatomy, tower_of
from prunus.anatomy.matrices import CONNECTOR, Matrix, by_block, choose, matrices, sharing, weight_of
from prunus.anatomy.units import Anatomy, Site, Unit, Unmapped, linears

__all__ = [
    "CONNECTOR", "Anatomy", "Matrix", "Site", "Unit", "Unmapped", "anatomy", "by_block", "choose", "linears", "matrices", "sharing",
    "tower_of", "weight_of",
]  # fmt: skip
