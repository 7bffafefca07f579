"""Allocation: how much of which matrix may stay. One file a method, one solver."""

from typing import TYPE_CHECKING

from prunus.allocation.allocate import allocate
from prunus.allocation.allocator import Allocator, Answer, Question, Scoring
from prunus.allocation.ecoflap import ECoFLaP
from prunus.allocation.iterative import IterativeGlobal
from prunus.allocation.manual import Manual
from prunus.allocation.owl import OWL
from prunus.allocation.uniform import Uniform
from prunus.typed import named

if TYPE_CHECKING:
    AnyAllocator = Allocator
else:
    AnyAllocator = named(Allocator, "method")
"""Any method, by its name in a recipe."""

__all__ = [
    "OWL", "Allocator", "Answer", "AnyAllocator", "ECoFLaP", "IterativeGlobal", "Manual", "Question", "Scoring", "Uniform",
    "allocate",
]  # fmt: skip
