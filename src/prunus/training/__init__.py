"""Any training of a model in place, under `transformers.Trainer`, which is imported when one begins."""

from prunus.training.finetune import Training, finetune

__all__ = ["Training", "finetune"]
