"""What a model is made of: its towers, blocks, units and matrices, and how they are selected."""

from prunus.anatomy.catalog import CATALOG, CONNECTORS, TOWERS, describe
from prunus.anatomy.cutting import Cuts, cut
from prunus.anatomy.discover import anatomy
from prunus.anatomy.layers import Layer, Site
from prunus.anatomy.layouts import Attention, Layout, Mlp, Sites
from prunus.anatomy.matrices import (
    ADAPTER,
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
from prunus.anatomy.mirrors import declared_mirrors, is_inside, mirrored
from prunus.anatomy.towers import (
    CONNECTOR,
    LANGUAGE,
    Labelled,
    Location,
    by_name,
    locate,
    per_tower,
    select,
    towers_meant,
)
from prunus.anatomy.trial import MisfitError, linear_at
from prunus.anatomy.units import Anatomy, Unit, Unmapped, gated, has_module, linears, module_of
from prunus.anatomy.whole_experts import INSIDE

__all__ = [
    "ADAPTER", "CATALOG", "CONNECTOR", "CONNECTORS", "INSIDE", "LANGUAGE", "MEANT_DENSE", "TOWERS", "Anatomy", "Attention",
    "Cuts", "Labelled", "Layer", "Layout", "LeftDense", "Location", "Matrix", "MisfitError", "Mlp", "Place", "Site", "Sites", "Survey",
    "Unit", "Unmapped", "anatomy", "by_block", "by_name", "by_parameter", "choose", "cut", "declared_mirrors", "describe", "gated", "has_module", "is_inside",
    "linear_at", "linears", "locate", "matrices", "mirrored", "module_of", "per_tower", "place_of", "select", "sharing", "survey", "towers_meant",
    "weight_of",
]  # fmt: skip
