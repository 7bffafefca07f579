"""Repair: getting back what pruning lost, without losing a zero."""

from prunus.repair.distillation import Distillation, Lesson
from prunus.repair.masks import HeldZeros, hold_zeros
from prunus.repair.methods import RESSA, AnyRepair, LoRA, MaskedFinetune, MaskedLoRA, Repair
from prunus.repair.repair import repair
from prunus.training import Training, finetune

__all__ = [
    "RESSA", "AnyRepair", "Distillation", "HeldZeros", "Lesson", "LoRA", "MaskedFinetune", "MaskedLoRA", "Repair", "Training", "finetune",
    "hold_zeros", "repair",
]  # fmt: skip
