"""The unstructured road: the walk, what it records, the patterns, and the pruners (one file each)."""

from typing import Annotated

from pydantic import Field

from prunus.unstructured.dsnot import DSnoT
from prunus.unstructured.magnitude import Magnitude
from prunus.unstructured.pruner import Pruner
from prunus.unstructured.pruning import WalkOptions, prune, prune_matrix, settle
from prunus.unstructured.record import sparsity_of
from prunus.unstructured.semi_structured import Accelerated, accelerate_2to4
from prunus.unstructured.sparsegpt import SparseGPT
from prunus.unstructured.wanda import Wanda

AnyPruner = Annotated[Magnitude | Wanda | SparseGPT | DSnoT, Field(discriminator="method")]
"""Every pruner a recipe can name."""

__all__ = [
    "Accelerated", "AnyPruner", "DSnoT", "Magnitude", "Pruner", "SparseGPT", "WalkOptions", "Wanda", "accelerate_2to4",
    "prune", "prune_matrix", "settle", "sparsity_of",
]  # fmt: skip
