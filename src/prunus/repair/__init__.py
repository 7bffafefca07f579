"""Repair: getting back what pruning lost, without losing a zero."""

from prunus.repair.by_hand import AddedAdapters, add_adapters
from prunus.repair.distillation import Distillation, Lesson
from prunus.repair.masks import HeldZeros, hold_zeros
from prunus.repair.methods import RESSA, AnyRepair, LoRA, MaskedFinetune, MaskedLoRA, Repair
from prunus.repair.repair import repair

__all__ = [
    "RESSA", "AddedAdapters", "AnyRepair", "Distillation", "HeldZeros", "Lesson", "LoRA", "MaskedFinetune", "MaskedLoRA", "Repair", "add_adapters", "hold_zeros",
    "repair",
]  # fmt: skip
