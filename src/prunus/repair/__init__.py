"""Repair: getting back what pruning lost."""

from prunus.repair.finetune import Training, finetune

__all__ = ["Training", "finetune"]
