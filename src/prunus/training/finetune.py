"""Fine-tuning of any model on a task's loss, by `transformers.Trainer`, resumable after any kind of death."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from prunus.batches import has_bf16
from prunus.errors import PrunusError
from prunus.modules import caches_kept
from prunus.parallel import agreeing, join_group, processes, told_by_first
from prunus.storage import write_text
from prunus.training.workers import Carried, Carrying
from prunus.typed import Count, Steps, Typed

if TYPE_CHECKING:
    from transformers import TrainerCallback


class Training(Typed):
    """How to train, in steps."""

    steps: Steps
    """Optimiser steps."""
    batch_size: Count = 32
    """Items of a batch, on each device."""
    gradient_accumulation: Count = 1
    """Batches of one optimiser step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with a momentum of .9."""
    learning_rate: float = Field(gt=0, le=10)
    """AdamW moves every weight by about this much a step."""
    tower_learning_rates: dict[str, Annotated[float, Field(ge=0, le=10)]] = Field(default_factory=dict)
    """Learning rates of single towers, instead of `learning_rate`; 0 lets a tower stand still."""
    schedule: Literal["constant", "cosine", "linear", "polynomial"] = "constant"
    """How the learning rate falls after the warm-up; `polynomial` with a power of .9, as Segmenter's authors have it."""
    warmup_steps: int = Field(default=0, ge=0, le=100_000_000)
    """Steps over which the learning rate rises from zero."""
    weight_decay: float = Field(default=0.05, ge=0, le=1000)
    """Of AdamW, decoupled: times the learning rate, the share that every weight loses a step."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are clipped to this norm; 0 does not clip."""
    bf16: bool = True
    """Train under bf16 autocast, where the device has instructions for it; weights stay as they are."""
    save_every: Steps = 100
    """Steps between checkpoints."""
    evaluate_every: Steps | None = None
    """Steps between evaluations on a part of the evaluation split; None does none."""
    workers: int = Field(default=0, ge=0, le=256)
    """Processes that make batches while the model trains; 0 makes them in between. What is learned is the same."""

    report_to: tuple[Literal["tensorboard", "mlflow", "trackio", "wandb"], ...] = ()
    """Where else losses and metrics are written as they come, by the Trainer: loggers that are installed. What is learned is the same."""

    def identity(self) -> dict[str, Any]:
        """The settings that the result depends on, in JSON; as earlier versions wrote them, where nothing new is asked for."""
        passed_over = {"workers", "report_to"} | ({"optimizer"} if self.optimizer == "adamw" else set())
        return self.model_dump(mode="json", exclude=passed_over)

    @model_validator(mode="after")
    def _loggers_are_there(self) -> Training:
        for name in self.report_to:
            if find_spec(name) is None:
                raise PrunusError("report_to", name, f"it is not installed; run: pip install {name}")
        return self

    @model_validator(mode="after")
    def _decay_shrinks(self) -> Training:
        rate = max(self.learning_rate, *self.tower_learning_rates.values(), 0.0)
        if rate * self.weight_decay > 1:
            raise PrunusError(
                "weight_decay", self.weight_decay, f"times the learning rate {rate} it is more than all of a weight; take less"
            )  # fmt: skip
        return self


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
    identity: Mapping[str, Any] | None = None,
) -> list[dict[str, float]]:
    """Trains a model in place. If `folder` holds a complete checkpoint of this training, goes on from it.

    Of several processes (`torchrun`) each trains on its part of the data, by DistributedDataParallel, and the first writes: the folder is on
    a disk that all of them see.

    A run that was killed and continued ends with the same bits as one that was not: data order, schedules, optimiser
    and random states are restored, and a half-written checkpoint is ignored and removed.

    Args:
        folder: where checkpoints live during the training.
        evaluate: called every `training.evaluate_every` steps.
        identity: what else makes this training what it is, in JSON; a folder of another one is refused.

    Returns:
        What was logged: rows with `step` and any of `loss`, `learning_rate`, `grad_norm`, `eval_…`.

    Raises:
        PrunusError: the folder holds another training, or a damaged one, or other things; a tower with its own learning rate is not there; a
            loss or a weight is no number, which ends the training at once.
    """
    from transformers import ProgressCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    from prunus.finished import Finished
    from prunus.training.trainer import Complete, Epochs, Progress, TaskTrainer, check_finite

    join_group()
    with agreeing():
        last = told_by_first(partial(_begun, folder, model, training, seed, identity or {}, processes()))
        evaluating = evaluate is not None and training.evaluate_every is not None
        on_cpu = not torch.accelerator.is_available()
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=training.steps,
            per_device_train_batch_size=training.batch_size,
            gradient_accumulation_steps=training.gradient_accumulation,
            learning_rate=training.learning_rate,
            **({} if training.optimizer == "adamw" else {"optim": training.optimizer}),
            lr_scheduler_type=_SCHEDULERS[training.schedule],
            lr_scheduler_kwargs={"power": 0.9, "lr_end": 0.0} if training.schedule == "polynomial" else None,
            warmup_steps=training.warmup_steps,
            weight_decay=training.weight_decay,
            max_grad_norm=training.max_grad_norm,
            bf16=training.bf16 and has_bf16("cpu" if on_cpu else "accelerator"),
            use_cpu=on_cpu,
            seed=seed,
            save_strategy="steps",
            save_steps=training.save_every,
            save_total_limit=2,
            eval_strategy="steps" if evaluating else "no",
            eval_steps=training.evaluate_every if evaluating else None,
            logging_steps=5,
            report_to=list(training.report_to) or "none",
            remove_unused_columns=False,
            label_names=[],
            dataloader_num_workers=training.workers,
            dataloader_pin_memory=False,
            ddp_broadcast_buffers=False,  # all processes have made the same
        )
        if arguments.n_gpu > 1:
            arguments._n_gpu = (
                1  # replicas of a model in one process would lose its hooks; start a process per GPU instead
            )
        with caches_kept(model):  # the Trainer turns them off for good
            trainer = TaskTrainer(
                model,
                arguments,
                train_dataset=Carried(data) if training.workers else data,
                eval_dataset=data if evaluating else None,
                data_collator=Carrying(collate) if training.workers else collate,
                callbacks=[Finished(), Epochs(), *callbacks, Complete()],
            )
            trainer.model_accepts_loss_kwargs = (
                False  # a task's loss is a mean: it is divided by the accumulation steps
            )
            trainer.task_loss, trainer.task_evaluate = loss, evaluate
            trainer.tower_learning_rates = training.tower_learning_rates
            trainer.remove_callback(ProgressCallback)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(Progress(title))
            try:
                trainer.train(resume_from_checkpoint=str(last) if last else None)
            except PrunusError:
                raise
            except Exception as error:
                if last is None or trainer.begun:
                    raise
                raise PrunusError(
                    "folder", str(last), f"the checkpoint is damaged ({type(error).__name__}); delete it, and the training goes on from the one before"
                ) from error  # fmt: skip
            check_finite(model, training.steps)
    return list(trainer.state.log_history)


def refuse_foreign(folder: Path) -> None:
    """Refuses a folder that holds what is not of a training of ours: checkpoints of others would be removed as half-written.

    Raises:
        PrunusError: it does, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise PrunusError("folder", str(folder), "it is a file; name a folder")
    inside = {path.name for path in folder.iterdir()} if folder.exists() else set()
    foreign = sorted(name for name in inside if name != TEACHER and not name.startswith(f".{IDENTITY}."))
    if foreign and IDENTITY not in inside:
        raise PrunusError(
            "folder", str(folder), f"it holds other things, such as {foreign[0]}; take a new or an empty folder"
        )


def _begun(
    folder: Path, model: nn.Module, training: Training, seed: int, identity: Mapping[str, Any], count: int
) -> Path | None:  # fmt: skip
    """The last checkpoint in a folder that is taken for this training; None if there is none yet.

    Args:
        count: the processes; of as many others, steps would be other ones.
    """
    from prunus.training.trainer import last_complete

    _claim(folder, model, training, seed, identity, count)
    return last_complete(folder)


def _claim(
    folder: Path, model: nn.Module, training: Training, seed: int, identity: Mapping[str, Any], count: int
) -> None:  # fmt: skip
    """Takes a folder for this training: what other settings have left there is not gone on with."""
    shapes = [[name, list(p.shape)] for name, p in model.named_parameters() if p.requires_grad]
    parts = {"training": training.identity(), "seed": seed, "trains": shapes, **identity}
    ours = {
        name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:16] for name, part in parts.items()
    }
    refuse_foreign(folder)
    record = folder / IDENTITY
    if record.exists():
        try:
            theirs = dict(json.loads(record.read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError):
            raise PrunusError(
                "folder", str(record), "the file is damaged; delete the folder, and begin again"
            ) from None
        began = theirs.pop(COUNT, 1)
        if began != count and any(folder.glob("checkpoint-*")):
            raise PrunusError(
                "folder", str(folder), f"it was begun by a training in {began} processes, and here are {count}, whose steps would see other items; start as "
                "many again, or delete the folder",
            )  # fmt: skip
        other = next((name for name in ours if ours[name] != theirs.get(name)), None)
        if other is not None:
            raise PrunusError(
                "folder", str(folder), f"it holds another training: its {other} differs; take another folder, or delete this one"
            )  # fmt: skip
    write_text(record, json.dumps({**ours, **({COUNT: count} if count > 1 else {})}))


IDENTITY = "training.json"
"""Says which training a folder belongs to."""
COUNT = "processes"
"""Key of how many train, where those are several."""
TEACHER = "teacher"
"""Holds what a teacher said, from before the training begins."""

_SCHEDULERS = {
    "constant": "constant_with_warmup",
    "cosine": "cosine",
    "linear": "linear",
    "polynomial": "polynomial",
}
"""Names of the same in transformers."""
