"""What a model is made of. Imports nothing of ours but the error type."""

from prunus.anatomy.discover import anatomy, tower_of
from prunus.anatomy.units import Anatomy, Site, Unit, Unmapped, linears

__all__ = ["Anatomy", "Site", "Unit", "Unmapped", "anatomy", "linears", "tower_of"]
