"""Any training of a model in place, under `transformers.Trainer`, which is imported when one begins."""

from prunus.training.finetune import TEACHER, Training, finetune, refuse_foreign

__all__ = [
    "TEACHER", "Training", "finetune", "refuse_foreign",
]  # fmt: skip
