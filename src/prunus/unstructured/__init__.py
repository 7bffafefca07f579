"""The unstructured road: the walk, what it records, the patterns, and the pruners (one file each)."""

from typing import TYPE_CHECKING

from prunus.typed import named
from prunus.unstructured.block import Request, WalkOptions
from prunus.unstructured.dsnot import DSnoT
from prunus.unstructured.gradients import Take, give_gradients
from prunus.unstructured.magnitude import Magnitude
from prunus.unstructured.padding import counted_positions, mask_of_text
from prunus.unstructured.patterns import UNSTRUCTURED, Quota, parse_pattern
from prunus.unstructured.pruner import Pruner, Scored
from prunus.unstructured.pruning import (
    carry_out,
    prune,
    prune_matrix,
    refuse_gradients,
    settle,
    walk_options,
)
from prunus.unstructured.record import RECORD, named_here, note, recorded_sparsity, sparsity_of, zeros_in
from prunus.unstructured.recorder import EnoughError, gather
from prunus.unstructured.semi_structured import Accelerated, accelerate_2to4
from prunus.unstructured.sparsegpt import SparseGPT, inverse_factor
from prunus.unstructured.spill import Spill
from prunus.unstructured.statistics import (
    PANEL,
    Gram,
    Needs,
    Seen,
    SquaredNorm,
    Statistic,
    Statistics,
    Sum,
    Variance,
    add_products,
    mirrored,
)
from prunus.unstructured.walk import Call, Stop, Visit, Walk, Weights
from prunus.unstructured.wanda import Wanda

if TYPE_CHECKING:
    AnyPruner = Pruner
else:
    AnyPruner = named(Pruner, "method")
"""Any pruner, by its name in a recipe."""

__all__ = [
    "PANEL", "RECORD", "UNSTRUCTURED", "Accelerated", "AnyPruner", "Call", "DSnoT", "EnoughError", "Gram", "Magnitude", "Needs", "Pruner",
    "Quota", "Request", "Scored", "Seen", "SparseGPT", "Spill", "SquaredNorm", "Statistic", "Statistics", "Stop",
    "Sum", "Take", "Variance", "Visit", "Walk", "WalkOptions", "Wanda", "Weights", "accelerate_2to4", "add_products",
    "carry_out", "counted_positions", "gather", "give_gradients", "inverse_factor", "mask_of_text", "mirrored",
    "named_here", "note",
    "parse_pattern", "prune", "prune_matrix", "recorded_sparsity", "refuse_gradients", "settle", "sparsity_of",
    "walk_options", "zeros_in",
]  # fmt: skip
