"""`repair`: trains a pruned model without losing a zero."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainerCallback, default_data_collator

from prunus.anatomy import matrices
from prunus.batches import input_device
from prunus.errors import PrunusError
from prunus.losses import Predict, own_prediction
from prunus.repair.distillation import Distillation, Lesson, Teacher
from prunus.repair.finetune import Training, finetune
from prunus.repair.lora import Adapters
from prunus.repair.masks import check_zeros, holding, in_fp32, zeros_of
from prunus.repair.methods import LoRA, MaskedFinetune, MaskedLoRA, Repair
from prunus.repair.teacher_cache import TeacherCache
from prunus.unstructured import sparsity_of
from prunus.unstructured.record import note

DEFAULT_TRAINING = Training(steps=500, batch_size=8, learning_rate=1e-4, weight_decay=0.0, warmup_steps=20)


def repair(
    model: nn.Module,
    method: Repair,
    data: Dataset[Any],
    training: Training = DEFAULT_TRAINING,
    teacher: nn.Module | Callable[[], nn.Module] | None = None,
    predict: Predict = own_prediction,
    collate: Callable[[list[Any]], dict[str, Any]] = default_data_collator,
    folder: str | Path | None = None,
    evaluate: Callable[[PreTrainedModel], dict[str, float]] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    seed: int = 0,
    title: str = "repair",
) -> list[dict[str, float]]:
    """Trains a pruned model in place, under `transformers.Trainer`; its zeros stay exactly where they are.

    Args:
        model: pruned by `prune`, or any model with zeros in its blocks' linear weights.
        method: `RESSA`, `MaskedLoRA`, `LoRA` or `MaskedFinetune`.
        data: training items by index, which `collate` makes batches of.
        training: steps, batch size, learning rate, bf16, gradient accumulation; by default 500 steps at 1e-4.
        teacher: the model before it was pruned, for distillation, or a function that loads it. Adapters hold its weights in
            place of the pruned ones, so that what the function loads is let go before the training begins.
            If it differs from the model in anything else, such as norms that were trained since, it stays beside it.
        predict: the loss and logits of a batch; by default the model's own.
        folder: where checkpoints live. A run that was killed goes on from them; None keeps none after the end.

    Returns:
        What was logged, as `finetune`.

    Raises:
        PrunusError: nothing is pruned, distillation without a teacher, or a zero that was lost; then the model is not to be
            saved.
    """
    if method.distillation is not None and teacher is None:
        raise PrunusError(
            "teacher",
            None,
            f"{method.method} learns from the model before it was pruned; give it, or distillation=None",
        )
    masks, was_training = zeros_of(model), model.training
    with ExitStack() as cleanup:
        place = Path(folder) if folder is not None else Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
        own_teacher: Teacher | None = None
        if isinstance(method, LoRA):
            dense = _opened(teacher) if method.distillation is not None else None
            adapters = Adapters(model, masks, method.rank, method.alpha, isinstance(method, MaskedLoRA), dense, seed)
            if adapters.holds_teacher:
                own_teacher = adapters.off
            elif dense is not None:
                teacher = dense
            del dense
            cleanup.callback(adapters.merge)  # however the training ends, the model is whole and its zeros are kept
        else:
            assert isinstance(method, MaskedFinetune)
            cleanup.enter_context(in_fp32(model, masks))
            cleanup.enter_context(holding(model, masks))
        identity = {
            "method": method.model_dump(mode="json"),
            "zeros": {n: crc32(m.packed.cpu().numpy().data) for n, m in masks.items()},
        }
        loss, data, collate = _lesson(method.distillation, model, own_teacher, teacher, predict, data, collate, place)
        log = finetune(
            model, training, place, data, collate, loss, evaluate=evaluate, callbacks=callbacks, seed=seed, title=title,
            identity=identity,
        )  # fmt: skip
    model.train(was_training)
    check_zeros(model, masks)
    record = sparsity_of(model)
    if record is not None:
        note(model, record.model_copy(update={"method": {**record.method, "repair": method.model_dump(mode="json")}}))
    return log


def _lesson(
    distillation: Distillation | None,
    model: nn.Module,
    own_teacher: Teacher | None,
    teacher: nn.Module | Callable[[], nn.Module] | None,
    predict: Predict,
    data: Dataset[Any],
    collate: Callable[[list[Any]], dict[str, Any]],
    place: Path,
) -> tuple[Callable[[nn.Module, Any], Tensor], Dataset[Any], Callable[[list[Any]], dict[str, Any]]]:
    """The training loss, with the data and the collating that it needs."""
    if distillation is None:
        return lambda student, batch: predict(student, batch).loss, data, collate
    blocks = list(dict.fromkeys(matrix.block for matrix in matrices(model)))
    lesson = Lesson(distillation, predict, own_teacher or _opened(teacher), blocks)
    if distillation.top_k is None:
        return lesson, data, collate
    cache = TeacherCache(place / "teacher", distillation, predict, data, collate)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    cache.fill(lesson.teacher, input_device(model))
    return cache.loss, cache.data, cache.collate


def _opened(teacher: nn.Module | Callable[[], nn.Module] | None) -> nn.Module:
    """The teacher, loaded if it is not yet."""
    assert teacher is not None
    return teacher if isinstance(teacher, nn.Module) else teacher()
