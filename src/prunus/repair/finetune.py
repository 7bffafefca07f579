"""Fine-tuning of any model on a task's loss, by `transformers.Trainer`, resumable after any kind of death."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from prunus.anatomy import tower_of
from prunus.storage import write_text
from prunus.typed import Typed

COMPLETE = "complete"
"""Marks a checkpoint folder in which everything has been written."""


class Training(Typed):
    """How to train: AdamW, in steps."""

    steps: int = Field(ge=1)
    batch_size: int = Field(default=32, ge=1)
    gradient_accumulation: int = Field(default=1, ge=1)
    learning_rate: float = Field(gt=0)
    tower_learning_rates: dict[str, float] = Field(default_factory=dict)
    """Learning rates of single towers, instead of `learning_rate`."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are clipped to this norm; 0 does not clip."""
    bf16: bool = True
    """Train under bf16 autocast; weights stay as they are."""
    save_every: int = Field(default=100, ge=1)
    """Steps between checkpoints."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Steps between evaluations on a part of the evaluation split; None does none."""


def finetune(
    model: nn.Module,
    training: Training,
    folder: Path,
    data: Dataset[Any],
    collate: Callable[[list[Any]], dict[str, Any]],
    loss: Callable[[nn.Module, dict[str, Any]], Tensor],
    evaluate: Callable[[PreTrainedModel], dict[str, float]] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    seed: int = 0,
    title: str = "training",
) -> list[dict[str, float]]:
    """Trains a model in place. If `folder` holds a complete checkpoint of this training, goes on from it.

    A run that was killed and continued ends with the same bits as one that was not: data order, schedules, optimiser
    and random states are restored, and a half-written checkpoint is ignored and removed.

    Args:
        folder: where checkpoints live during the training.
        evaluate: called every `training.evaluate_every` steps.

    Returns:
        What was logged: rows with `step` and any of `loss`, `learning_rate`, `grad_norm`, `eval_…`.
    """
    last = _last_complete(folder)
    evaluating = evaluate is not None and training.evaluate_every is not None
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=training.steps,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type=_SCHEDULERS[training.schedule],
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        bf16=training.bf16,
        use_cpu=not torch.accelerator.is_available(),
        seed=seed,
        save_strategy="steps",
        save_steps=training.save_every,
        save_total_limit=2,
        eval_strategy="steps" if evaluating else "no",
        eval_steps=training.evaluate_every if evaluating else None,
        logging_steps=5,
        report_to="none",
        remove_unused_columns=False,
        label_names=[],
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )
    trainer = _TaskTrainer(
        model,
        arguments,
        train_dataset=data,
        eval_dataset=data if evaluating else None,
        data_collator=collate,
        callbacks=[*callbacks, _Complete()],
    )
    trainer.task_loss, trainer.task_evaluate = loss, evaluate
    trainer.tower_learning_rates = training.tower_learning_rates
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Progress(title))
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    return list(trainer.state.log_history)


_SCHEDULERS = {
    "constant": "constant_with_warmup",
    "cosine": "cosine",
    "linear": "linear",
}
"""Names of the same in transformers."""


class _TaskTrainer(Trainer):  # type: ignore[misc]
    """The Trainer, with a task's loss and metric and a learning rate per tower."""

    task_loss: Callable[[nn.Module, dict[str, Any]], Tensor]
    task_evaluate: Callable[[PreTrainedModel], dict[str, float]] | None
    tower_learning_rates: dict[str, float]
    optimizer: Any

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        with self.accelerator.autocast():  # accelerate only wraps `forward`, which a task's loss may not call
            return self.task_loss(model, inputs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        assert self.task_evaluate is not None
        metrics = {f"eval_{name}": value for name, value in self.task_evaluate(self.model).items()}
        self.model.train()
        self.log(metrics)
        return metrics

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(self.model))
            groups: dict[tuple[float, float], list[nn.Parameter]] = {}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    tower = tower_of(self.model, name.rpartition(".")[0])
                    rate = self.tower_learning_rates.get(tower, self.args.learning_rate)
                    decay = self.args.weight_decay if name in decayed else 0.0
                    groups.setdefault((rate, decay), []).append(parameter)
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = cls(
                [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()],
                **options,
            )
        return self.optimizer


class _Progress(ProgressCallback):  # type: ignore[misc]
    """The Trainer's progress bar, with the latest figures on the bar instead of a line each."""

    def __init__(self, title: str):
        super().__init__()
        self._title = title

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self._title)
            self.training_bar.update(state.global_step)
            self.current_step = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs:
            figures = {k: f"{v:.4g}" for k, v in logs.items() if k == "loss" or k.startswith("eval_acc")}
            if figures:
                self.training_bar.set_postfix(figures)


class _Complete(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint once every other callback has written its part; must stand last."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            write_text(Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE, "")


def _last_complete(folder: Path) -> Path | None:
    """The newest complete checkpoint; incomplete ones are removed."""
    found: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        if (path / COMPLETE).exists():
            found[int(path.name.rpartition("-")[2])] = path
        else:
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob("tmp-checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)
    return found[max(found)] if found else None
