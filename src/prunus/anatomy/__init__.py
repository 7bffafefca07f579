"""What a model is made of. Of ours it imports the error type and the refusals."""

from prunus.anatomy.discover import anatomy, tower_of
from prunus.anatomy.matrices import (
    ADAPTER,
    CONNECTOR,
    MEANT_DENSE,
    LeftDense,
    Matrix,
    Place,
    Survey,
    by_block,
    by_parameter,
    choose,
    matrices,
    place_of,
    sharing,
    survey,
    weight_of,
)
from prunus.anatomy.units import Anatomy, Site, Unit, Unmapped, has_module, linears, module_of

__all__ = [
    "ADAPTER", "CONNECTOR", "MEANT_DENSE", "Anatomy", "LeftDense", "Matrix", "Place", "Site", "Survey", "Unit", "Unmapped",
    "anatomy", "by_block", "by_parameter", "choose", "has_module", "linears", "matrices", "module_of", "place_of",
    "sharing", "survey", "tower_of", "weight_of",
]  # fmt: skip
