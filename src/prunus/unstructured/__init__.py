"""The unstructured road: the walk, what it records, the patterns, and the pruners (one file each)."""

from typing import TYPE_CHECKING

from prunus.typed import named
from prunus.unstructured.dsnot import DSnoT
from prunus.unstructured.magnitude import Magnitude
from prunus.unstructured.patterns import Quota
from prunus.unstructured.pruner import Pruner, Scored
from prunus.unstructured.pruning import WalkOptions, prune, prune_matrix, refuse_gradients, settle
from prunus.unstructured.record import recorded_sparsity, sparsity_of
from prunus.unstructured.semi_structured import Accelerated, accelerate_2to4
from prunus.unstructured.sparsegpt import SparseGPT
from prunus.unstructured.statistics import Gram, Seen, SquaredNorm, Statistic, Statistics, Sum, Variance
from prunus.unstructured.wanda import Wanda

if TYPE_CHECKING:
    AnyPruner = Pruner
else:
    AnyPruner = named(Pruner, "method")
"""Any pruner, by its name in a recipe."""

__all__ = [
    "Accelerated", "AnyPruner", "DSnoT", "Gram", "Magnitude", "Pruner", "Quota", "Scored", "Seen", "SparseGPT", "SquaredNorm", "Statistic",
    "Statistics", "Sum", "Variance", "WalkOptions", "Wanda", "accelerate_2to4", "prune", "prune_matrix", "recorded_sparsity", "refuse_gradients", "settle", "sparsity_of",
]  # fmt: skip
