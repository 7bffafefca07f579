"""Allocation: how much of which matrix may stay. One file a method, one solver."""

from typing import Annotated

from pydantic import Field

from prunus.allocation.allocate import allocate
from prunus.allocation.allocator import Allocator
from prunus.allocation.ecoflap import ECoFLaP
from prunus.allocation.iterative import IterativeGlobal
from prunus.allocation.manual import Manual
from prunus.allocation.owl import OWL
from prunus.allocation.uniform import Uniform

AnyAllocator = Annotated[Uniform | Manual | ECoFLaP | IterativeGlobal | OWL, Field(discriminator="method")]
"""Every method a recipe can name."""

__all__ = ["OWL", "Allocator", "AnyAllocator", "ECoFLaP", "IterativeGlobal", "Manual", "Uniform", "allocate"]
