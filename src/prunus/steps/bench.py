"""What a step has at hand while it is carried out."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from prunus.batches import default_device
from prunus.checkpoint import load_model, write_checksums
from prunus.losses import Loss
from prunus.parallel import agreeing, is_first, of_first
from prunus.plan import Plan, SparsityPlan
from prunus.storage import new_folder
from prunus.tasks import Task
from prunus.training import Training, finetune

if TYPE_CHECKING:
    from transformers import TrainerCallback

COURSE_LIMIT = 500
"""Items of the evaluation split that the metric along the way is measured on."""


@dataclass(frozen=True)
class Bench:
    """A task, folders, and how to train and save on this task."""

    task: Task
    """What the model is for; with the settings that the dense model needs."""
    seed: int
    """Of the recipe; torch's generators have been seeded with it."""
    folder: Path
    """Of the step, for whatever it keeps: plans, checkpoints."""
    current: Path
    """Folder of the model that the step starts from."""
    unpruned: Path
    """Folder of the last model before weights were set to zero."""
    dense: Path
    """Folder of the model that the recipe starts from."""

    @property
    def output(self) -> Path:
        """Folder of the model that the step makes. It is whole or absent."""
        return self.folder / "model"

    @property
    def checkpoints(self) -> Path:
        """Folder of a training, to be gone on with."""
        return self.folder / "checkpoints"

    @property
    def device(self) -> torch.device:
        """Where models run that `train` does not train."""
        return default_device()

    def is_done(self) -> bool:
        """Whether `output` is there, as the first of several processes sees it: what is asked before others have begun to make it."""
        return of_first(self.output.exists())

    def seed_generators(self) -> None:
        """As `transformers.set_seed`, which would bring peft and quantisers with it, where they are installed."""
        random.seed(self.seed)
        np.random.seed(self.seed)
        torch.manual_seed(self.seed)

    def load(self) -> PreTrainedModel:
        """The model that the step starts from, on the CPU."""
        return load_model(self.current)

    def train(
        self, model: PreTrainedModel, training: Training, title: str, callbacks: Sequence[TrainerCallback] = (),
        loss: Loss | None = None, folder: Path | None = None, data: Dataset[Any] | None = None,
    ) -> list[dict[str, float]]:  # fmt: skip
        """Trains a model in place, or goes on from the last of its `checkpoints` (or of those in `folder`).

        Args:
            loss: of a model and a batch; by default the task's.
            data: by default the task's.

        Returns:
            What was logged.
        """
        return finetune(
            model, training, folder or self.checkpoints, self.task.train_data() if data is None else data, self.task.collate,
            loss or self.task.loss, evaluate=self.headline, callbacks=(*callbacks, *self.callbacks()), seed=self.seed, title=title,
        )  # fmt: skip

    def callbacks(self) -> tuple[TrainerCallback, ...]:
        """What the task does in the course of any training."""
        from prunus.training.trainer import EachStep

        return (EachStep(self.task.before_step),)

    def headline(self, model: PreTrainedModel) -> dict[str, float]:
        """The task's first metric, on a part of the evaluation split."""
        return {self.task.headline: self.task.measure(model, COURSE_LIMIT, progress=False)[self.task.headline]}

    def save(self, model: PreTrainedModel) -> None:
        """Makes `output` of a model, with what turns raw inputs into its tensors, and checksums; the first of several processes does."""
        with agreeing():
            if is_first():
                with new_folder(self.output) as partial:
                    model.save_pretrained(partial)
                    self.task.save_processor(partial)
                    write_checksums(partial)

    def save_plan(self, plan: Plan | SparsityPlan) -> Path:
        """Writes a plan into the folder of the step, once."""
        return self.keep("plan.json", plan.save)

    def keep(self, name: str, save: Callable[[Path], object]) -> Path:
        """Keeps a file in the folder of the step, which the first of several processes writes.

        Args:
            save: writes it, whole or not at all, under the path that it is given.
        """
        file = self.folder / name
        with agreeing():
            if is_first():
                save(file)
        return file
