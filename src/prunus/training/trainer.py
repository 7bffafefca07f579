"""What `transformers.Trainer` is told and shown while a task trains. Imported when a training begins: it takes longer to import,
and more memory, than all the rest of prunus.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset
from transformers import PreTrainedModel, ProgressCallback, Trainer, TrainerCallback

from prunus.anatomy import locate, per_tower
from prunus.errors import PrunusError
from prunus.modules import replaced
from prunus.parallel import agreeing, alone
from prunus.storage import saved_in_passing, write_text
from prunus.training.workers import Carried, refuse_failed

COMPLETE = "complete"
"""Marks a checkpoint folder in which everything has been written."""


class TaskTrainer(Trainer):  # type: ignore[misc]
    """The Trainer, with a task's loss and metric and a learning rate per tower."""

    task_loss: Callable[[nn.Module, dict[str, Any]], Tensor]
    task_evaluate: Callable[[PreTrainedModel], dict[str, float]] | None
    tower_learning_rates: dict[str, float]
    optimizer: Any
    control: Any
    begun = False
    """Whether a loss has been computed."""

    @agreeing()  # before gradients are added up
    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        loss = self._loss(model, inputs)
        self.begun = True
        if not torch.isfinite(loss):
            raise PrunusError(
                "training", float(loss.detach()), f"the loss of step {self.state.global_step + 1} is no number; "
                "look at the data, or take a smaller learning rate",
            )  # fmt: skip
        return loss

    def _loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        with self.accelerator.autocast():  # accelerate only wraps `forward`, which a task's loss may not call
            if model is self.model:
                return self._loss_of(model, inputs)
            # of several processes, a wrapper has to be called, or it would not add their gradients up
            inner = self.model
            forward = inner.forward

            def lossy_forward(batch: dict[str, Any]) -> Tensor:
                with replaced(inner, forward):
                    return self._loss_of(inner, batch)

            with replaced(inner, lossy_forward):
                return model(inputs)  # type: ignore[no-any-return]

    def _loss_of(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        refuse_failed(batch)
        return self.task_loss(model, batch)

    @agreeing()
    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        return super().get_batch_samples(*args, **kwargs)

    @agreeing()
    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)

    @agreeing()
    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(*args, **kwargs)

    @agreeing()
    def _load_optimizer_and_scheduler(self, *args: Any, **kwargs: Any) -> None:
        super()._load_optimizer_and_scheduler(*args, **kwargs)

    @agreeing()
    def _load_rng_state(self, *args: Any, **kwargs: Any) -> None:
        super()._load_rng_state(*args, **kwargs)

    def _save(self, *args: Any, **kwargs: Any) -> None:
        """Under the names that the model itself has for its weights: the Trainer reads a checkpoint by those."""
        if isinstance(
            self.model, PreTrainedModel
        ):  # which has others for its files, where transformers has renamed parts
            self.model.__dict__["save_pretrained"] = partial(self.model.save_pretrained, save_original_format=False)
        try:
            with saved_in_passing():
                super()._save(*args, **kwargs)
        finally:
            self.model.__dict__.pop("save_pretrained", None)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuses a checkpoint that lacks a weight: the Trainer would warn, and go on with what is there."""
        weights, missing = self.model.state_dict(), set(load_result.missing_keys)
        there = {weight.data_ptr() for name, weight in weights.items() if name not in missing}
        lost = [name for name in load_result.missing_keys if weights[name].data_ptr() not in there]
        if lost:
            raise PrunusError(
                "folder", lost[0], "a checkpoint does not hold it; delete the checkpoint, and the training goes on from the one before"
            )  # fmt: skip

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        assert self.task_evaluate is not None
        with agreeing(), alone():
            metrics = {f"eval_{name}": value for name, value in self.task_evaluate(self.model).items()}
        self.model.train()
        self.log(metrics)
        # says that it is done: a step at the end of an epoch would be evaluated twice
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(self.model))
            groups: dict[tuple[float, float], list[nn.Parameter]] = {}
            places = locate(self.model)
            named = [(n, p, places[n.rpartition(".")[0]].tower) for n, p in self.model.named_parameters()]
            towers = tuple(dict.fromkeys(tower for _, _, tower in named))
            rates = per_tower(
                self.tower_learning_rates, towers, "tower_learning_rates", "the model has no such tower; towers: {}"
            )
            for name, parameter, tower in named:
                if parameter.requires_grad:
                    rate = rates.get(tower, self.args.learning_rate)
                    decay = self.args.weight_decay if name in decayed else 0.0
                    groups.setdefault((rate, decay), []).append(parameter)
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            if cls is torch.optim.SGD:
                options["momentum"] = 0.9  # which no argument of the Trainer says
            self.optimizer = cls(
                [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()],
                **options,
            )
        return self.optimizer


class Progress(ProgressCallback):  # type: ignore[misc]
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
            figures = {k: f"{v:.4g}" for k, v in logs.items() if k == "loss" or k.startswith("eval_")}
            if figures:
                self.training_bar.set_postfix(figures)


def check_finite(model: nn.Module, step: int) -> None:
    """Refuses a model that a training has spoilt.

    Raises:
        PrunusError: a weight is no number.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise PrunusError(
                "training", name, f"after step {step} it holds values that are no numbers; take a smaller learning rate"
            )


class Epochs(TrainerCallback):  # type: ignore[misc]
    """Tells the data which epoch begins, also where a training is resumed in the middle of one, which accelerate then does not."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        data = kwargs["train_dataloader"].dataset
        while isinstance(data, Subset | Carried):
            data = data.dataset if isinstance(data, Subset) else data.data
        if hasattr(data, "set_epoch"):
            data.set_epoch(int((state.epoch or 0) + 1e-6))


class EachStep(TrainerCallback):  # type: ignore[misc]
    """Calls a function before every step of the optimiser.

    Args:
        before: of the model, the steps that are done, and all of the training's.
    """

    def __init__(self, before: Callable[[nn.Module, int, int], None]):
        self.before = before

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before(kwargs["model"], state.global_step, state.max_steps)


class Complete(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint once every other callback has written its part; must stand last."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with agreeing():  # every process has written its random state
            check_finite(kwargs["model"], state.global_step)
        with agreeing():
            if state.is_world_process_zero:
                write_text(Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE, "")


def last_complete(folder: Path) -> Path | None:
    """The newest complete checkpoint; incomplete ones are removed."""
    found: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        step = path.name.rpartition("-")[2]
        if (path / COMPLETE).exists() and step.isdecimal():
            found[int(step)] = path
        else:
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob("tmp-checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)
    return found[max(found)] if found else None
