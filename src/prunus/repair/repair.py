"""`repair`: trains a pruned model without losing a zero."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, default_data_collator

from prunus.anatomy import Matrix, matrices, weight_of
from prunus.batches import check_batch, input_device
from prunus.errors import PrunusError, refusing
from prunus.losses import Predict, own_loss, own_prediction
from prunus.parallel import agreeing, join_group, of_first, refuse_sharding_launcher
from prunus.plan import Entry
from prunus.refusals import expect, is_absent, plain_model, refuse_weight
from prunus.repair.distillation import Distillation, Lesson, Teacher, beside
from prunus.repair.masks import BitMask, check_zeros, zeros_of
from prunus.repair.methods import Repair
from prunus.repair.teacher_cache import TeacherCache
from prunus.training import TEACHER, Training, finetune, refuse_foreign
from prunus.undo import Undo
from prunus.unstructured import note, sparsity_of

if TYPE_CHECKING:
    from transformers import TrainerCallback

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

    Of several processes (`torchrun`) every one is given the same model and data, and trains on its part of each batch; all end with the same
    weights. The teacher is in each.

    Args:
        model: pruned by `prune`, or any model with zeros in its blocks' linear weights.
        method: `RESSA`, `MaskedLoRA`, `LoRA` or `MaskedFinetune`.
        data: training items by index (a list, or a data set), which `collate` makes batches of.
        training: steps, batch size, learning rate, bf16, gradient accumulation; by default 500 steps at 1e-4.
        teacher: the model before it was pruned, for distillation, or a function that loads it. Adapters hold its weights in
            place of the pruned ones, so that what the function loads is let go before the training begins.
            If it differs from the model in anything else, such as norms that were trained since, it stays beside it.
        predict: the loss and logits of a batch; by default the model's own.
        folder: where checkpoints live. A run that was killed goes on from them; None keeps none after the end.

    Returns:
        What was logged, as `finetune`. What is frozen stays as it is, and zeros where they are. Whatever exception leaves this
        function, the model is as it was before.

    Raises:
        PrunusError: nothing is pruned, or all of it is frozen; a compiled, quantised or absent weight; data that are no items
            by index, or none that the model can take; distillation without a teacher; or a zero that was lost.
    """
    refuse_sharding_launcher()
    join_group()
    with agreeing():
        model = plain_model(model)
        expect("training", training, Training, "prunus.Training(steps=..., learning_rate=...)")
        masks, trainable = _what_to_train(model, method, data, teacher)
        candidates = matrices(model)
        method.check(candidates, masks)
        if folder is not None:
            refuse_foreign(Path(folder))
        if collate is default_data_collator:
            collate = _collate
        with Undo() as undo, ExitStack() as cleanup:
            for tensor in (*trainable, *model.buffers()):
                undo.keep(tensor)
            cleanup.callback(_set_modes, {module: module.training for module in model.modules()})
            cleanup.callback(_set_gradients, [(parameter, parameter.grad) for parameter in trainable])
            place = (
                Path(of_first(cleanup.enter_context(tempfile.TemporaryDirectory()))) if folder is None else Path(folder)
            )
            dense = None if method.distillation is None else _opened(teacher)
            own_teacher = cleanup.enter_context(method.around(model, masks, dense, seed))
            if own_teacher is None and dense is not None:
                own_teacher = beside(dense)
            del dense
            identity = {
                "method": method.model_dump(mode="json"),
                "zeros": {n: crc32(m.packed.cpu().numpy().data) for n, m in masks.items()},
            }
            loss, data, collate = _lesson(
                method.distillation, model, candidates, own_teacher, predict, data, collate, place
            )
            log = finetune(
                model, training, place, data, collate, loss, evaluate=evaluate, callbacks=callbacks, seed=seed, title=title,
                identity=identity,
            )  # fmt: skip
            cleanup.close()
            check_zeros(model, masks)
            record = sparsity_of(model)
            if record is not None:
                note(model, record.model_copy(update={"history": (*record.history, Entry.of("repair", method))}))
    return log


def _what_to_train(
    model: nn.Module, method: Repair, data: Any, teacher: object
) -> tuple[dict[str, BitMask], list[nn.Parameter]]:
    """The zeros, and the parameters that are not frozen, of a model that can be repaired; others are refused."""
    expect("method", method, Repair, "a method with its settings, such as prunus.MaskedFinetune()")
    _refuse_data(data)
    if method.distillation is not None and teacher is None:
        raise PrunusError(
            "teacher", None, f"{method.method} learns from the model before it was pruned; give it, or distillation=None"
        )  # fmt: skip
    for name, parameter in model.named_parameters():
        if is_absent(parameter):
            refuse_weight(name, parameter)
    masks = zeros_of(model)
    for name in masks:
        refuse_weight(name, weight_of(model, name))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise PrunusError(
            "model", type(model).__name__, "all of it is frozen; requires_grad_(True) on what is to be trained"
        )
    _refuse_shared(model)
    return masks, trainable


def _refuse_shared(model: nn.Module) -> None:
    """Refuses what no checkpoint of the training could hold: transformers saves shared weights only where it tied them itself."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    first: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(parameter, name)
        if other != name and isinstance(model, PreTrainedModel) and not {name, other} & {*tied, *tied.values()}:
            raise PrunusError(
                "model", name, f"its weight is that of {other}, which transformers cannot save; copy it first"
            )


def _refuse_data(data: Any) -> None:
    if isinstance(data, Mapping | Tensor | str | bytes) or not hasattr(data, "__getitem__"):
        raise PrunusError(
            "data", type(data).__name__, "give training items by index: a list of them, or a data set (one split of it)"
        )
    if hasattr(data, "__len__") and not len(data):
        raise PrunusError("data", "none", "there is nothing to learn from; give training items")


def _collate(items: list[Any]) -> dict[str, Any]:
    with refusing("data", type(items[0]).__name__, "items do not make a batch, so pass a function as collate"):
        batch = dict(default_data_collator(items))
    check_batch(batch, "data")
    return batch


def _set_modes(modes: dict[nn.Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training


def _set_gradients(gradients: list[tuple[nn.Parameter, Tensor | None]]) -> None:
    for parameter, gradient in gradients:
        parameter.grad = gradient


def _lesson(
    distillation: Distillation | None,
    model: nn.Module,
    candidates: Sequence[Matrix],
    teacher: Teacher | None,
    predict: Predict,
    data: Dataset[Any],
    collate: Callable[[list[Any]], dict[str, Any]],
    place: Path,
) -> tuple[Callable[[nn.Module, Any], Tensor], Dataset[Any], Callable[[list[Any]], dict[str, Any]]]:
    """The training loss, with the data and the collating that it needs."""
    if distillation is None:
        if predict is own_prediction:  # which asks for logits of labels, and nobody compares them
            return own_loss, data, collate
        return lambda student, batch: predict(student, batch).loss, data, collate
    blocks = list(dict.fromkeys(matrix.block for matrix in candidates))
    assert teacher is not None
    lesson = Lesson(distillation, predict, teacher, blocks)
    if distillation.top_k is None:
        return lesson, data, collate
    cache = TeacherCache(place / TEACHER, distillation, predict, data, collate)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    cache.fill(lesson.teacher, input_device(model))
    return cache.loss, cache.data, cache.collate


def _opened(teacher: nn.Module | Callable[[], nn.Module] | None) -> nn.Module:
    """The teacher, loaded if it is not yet."""
    assert teacher is not None
    return teacher if isinstance(teacher, nn.Module) else teacher()
