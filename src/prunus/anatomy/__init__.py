"""What a model is made of. Imports nothing of ours but the error type."""

from prunus.anatomy.discover import anatomy, tower_of
from prunus.anatomy.matrices import (
    CONNECTOR,
    Matrix,
    Place,
    by_block,
    by_parameter,
    choose,
    matrices,
    place_of,
    sharing,
    weight_of,
)
from prunus.anatomy.units import Anatomy, Site, Unit, Unmapped, has_module, linears, module_of

__all__ = [
    "CONNECTOR", "Anatomy", "Matrix", "Place", "Site", "Unit", "Unmapped", "anatomy", "by_block", "by_parameter", "choose", "has_module", "linears", "matrices", "module_of",
    "place_of", "sharing", "tower_of", "weight_of",
]  # fmt: skip
