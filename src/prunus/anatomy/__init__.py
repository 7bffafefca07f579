"""What a model is made of. Imports nothing of ours but the error type."""

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
from prunus.anatomy.wrappers import refuse_unusable, unusable, unwrapped

__all__ = [
    "ADAPTER", "CONNECTOR", "MEANT_DENSE", "Anatomy", "LeftDense", "Matrix", "Place", "Site", "Survey", "Unit", "Unmapped",
    "anatomy", "by_block", "by_parameter", "choose", "has_module", "linears", "matrices", "module_of", "place_of",
    "refuse_unusable", "sharing", "survey", "tower_of", "unusable", "unwrapped", "weight_of",
]  # fmt: skip
