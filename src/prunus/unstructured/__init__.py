"""The unstructured road: the walk, what it records, the patterns, and the pruners (one file each)."""

from prunus.unstructured.dsnot import DSnoT
from prunus.unstructured.magnitude import Magnitude
from prunus.unstructured.pruning import WalkOptions, prune, prune_matrix, sparsity_of
from prunus.unstructured.pruner import Pruner
from prunus.unstructured.sparsegpt import SparseGPT
from prunus.unstructured.wanda import Wanda

__all__ = [
    "DSnoT",
    "Magnitude",
    "Pruner",
    "SparseGPT",
    "WalkOptions",
    "Wanda",
    "prune",
    "prune_matrix",
    "sparsity_of",
]  # fmt: skip
