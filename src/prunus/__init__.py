"""Prunus makes vision-language transformers small: it prunes them, narrows them, and hands back a plain checkpoint.

Importing it also teaches transformers to load Prunus checkpoints. What is named here is the public interface; nothing
else is promised.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from prunus.allocation import OWL, ECoFLaP, IterativeGlobal, Manual, Uniform, allocate
from prunus.anatomy import Anatomy, Matrix, anatomy, matrices, mirrored
from prunus.calibrated import (
    Calibrated,
    ChannelMagnitude,
    ChannelScores,
    Depth,
    Fluctuation,
    GradientTimesGate,
    RouterWeighted,
    Score,
    SurgeonCost,
    WeightedNorm,
    drop_blocks,
    narrow,
    narrow_folder,
    plan_channels,
    score_channels,
    sweep,
)
from prunus.calibration import image_batches, pair_batches, text_batches
from prunus.checkpoint import extract, extract_to, load_model, plan_of, prune_folder
from prunus.errors import PrunusError
from prunus.plan import Plan, SparsityPlan, draw_plans
from prunus.repair import (
    RESSA,
    Distillation,
    Lesson,
    LoRA,
    MaskedFinetune,
    MaskedLoRA,
    add_adapters,
    hold_zeros,
    repair,
)
from prunus.structured import (
    AtEnd,
    Budget,
    Chance,
    Closing,
    ComponentRatios,
    Composed,
    Decision,
    Everyone,
    GateGradient,
    Importance,
    IterativeMagnitude,
    IterativeSTE,
    MaskBased,
    Parts,
    Progressive,
    RateGate,
    Rounds,
    Scope,
    Search,
    SearchMethod,
    Storage,
    StraightThrough,
    Structured,
    Taylor,
    TrainedGate,
    Unified,
    UPop,
    WeightMagnitude,
    WithinComponent,
    WithinUnit,
)
from prunus.training import Training, finetune
from prunus.unstructured import (
    DSnoT,
    Magnitude,
    SparseGPT,
    WalkOptions,
    Wanda,
    accelerate_2to4,
    prune,
    prune_matrix,
    sparsity_of,
)

if TYPE_CHECKING:
    from prunus.models import convert
    from prunus.structured import SearchCallback

__version__ = "0.1.0"

__all__ = [
    "OWL", "RESSA", "Anatomy", "AtEnd", "Budget", "Calibrated", "Chance", "ChannelMagnitude", "ChannelScores", "Closing", "ComponentRatios", "Composed",
    "DSnoT", "Decision", "Depth", "Distillation", "ECoFLaP", "Everyone", "Fluctuation", "GateGradient", "GradientTimesGate", "Importance", "IterativeGlobal",
    "IterativeMagnitude", "IterativeSTE", "Lesson", "LoRA", "Magnitude", "Manual", "MaskBased", "MaskedFinetune", "MaskedLoRA", "Matrix",
    "Parts", "Plan", "Progressive", "PrunusError", "RateGate", "Rounds", "RouterWeighted", "Scope", "Score", "Search", "SearchCallback", "SearchMethod",
    "SparseGPT", "SparsityPlan", "Storage", "StraightThrough", "Structured", "SurgeonCost", "Taylor", "TrainedGate", "Training", "UPop", "Unified",
    "Uniform", "WalkOptions", "Wanda", "WeightMagnitude", "WeightedNorm", "WithinComponent", "WithinUnit", "accelerate_2to4", "add_adapters", "allocate",
    "anatomy", "convert", "draw_plans", "drop_blocks", "extract", "extract_to", "finetune", "hold_zeros", "image_batches", "load_model", "matrices",
    "mirrored", "narrow", "narrow_folder",
    "pair_batches", "plan_channels", "plan_of", "prune", "prune_folder", "prune_matrix", "repair", "score_channels", "sparsity_of", "sweep", "text_batches",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """What needs the Trainer (which brings peft and quantisers with it, where they are installed) or the architectures of the
    published models, and rooms that importing prunus leaves closed, such as `prunus.recipe`, are imported when asked for."""
    if name == "SearchCallback":
        from prunus.structured import SearchCallback

        return SearchCallback
    if name == "convert":
        from prunus.models import convert

        return convert
    if find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
