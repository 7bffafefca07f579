"""What a run needs to know of a task: data, a loss, metrics. Three members are written, the others follow from them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from prunus.batches import for_model
from prunus.calibration import Batch, spread
from prunus.errors import PrunusError
from prunus.losses import Loss, Prediction, own_loss, own_prediction
from prunus.metric import Metric
from prunus.tasks.exhibit import Exhibit
from prunus.tasks.kinds import architecture, read_config
from prunus.typed import Typed, known

Split = Literal["train", "evaluation"]
"""Data to train and calibrate on, or to measure on."""


class Task(Typed):
    """Base of every task: settings as frozen data, of which nothing is read before a method needs it.

    A task of one's own is a subclass with a `name` that has a default, its `metrics`, and `train_data`, `collate` and
    `evaluate`. It is known to recipes and to the command line once its module is imported.
    """

    name: str
    """What recipes call it."""
    metrics: ClassVar[Mapping[str, Metric]] = {}
    """What `evaluate` returns, by name. The first is the headline."""

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        lacking = sorted(cls.__abstractmethods__)
        if not _says_metrics(cls.metrics):
            lacking.append("metrics, a ClassVar such as {'accuracy': Metric()}")
        if lacking and isinstance(cls.model_fields["name"].default, str):  # without a name it is a base of others
            raise PrunusError("task", cls.__name__, f"it has a name, so write what it lacks: {', '.join(lacking)}")

    measured_on_items: ClassVar[tuple[str, ...]] = ("loss",)
    """What `measure_on` returns: what can be watched on training items that are held out."""

    @property
    def headline(self) -> str:
        """The metric that plots show, and that is measured along the way."""
        return next(iter(self.metrics))

    @abstractmethod
    def train_data(self) -> Dataset[Any]:
        """Training items, by index, and how many; the same at every call, so that a resumed run sees what it saw."""

    def still_data(self) -> Dataset[Any]:
        """The training items without random changes, for calibration and measuring: by default those of `train_data`."""
        return self.train_data()

    @abstractmethod
    def collate(self, items: Sequence[Any]) -> Batch:
        """A batch of items, which `loss` and `predict` take."""

    @abstractmethod
    def evaluate(self, model: Any, limit: int | None = None, progress: bool = True) -> dict[str, float]:
        """The metrics on the evaluation split, or on its first `limit` items.

        Args:
            model: in any mode; it is put into that of evaluation.
            limit: None takes all items.
            progress: whether to show a bar.
        """

    def measure(self, model: Any, limit: int | None = None, progress: bool = True) -> dict[str, float]:
        """As `evaluate`, in plain numbers.

        Raises:
            PrunusError: the headline is not among them.
        """
        found = {name: float(value) for name, value in self.evaluate(model, limit, progress).items()}
        if self.headline not in found:
            got = ", ".join(found) or "nothing"
            raise PrunusError(
                "task.metrics", self.headline, f"evaluate of {self.name} returns {got}; let both say the same"
            )
        return found

    def exhibits(self, model: Any, count: int, limit: int | None = None) -> list[Exhibit]:
        """Items of the evaluation split with what a model makes of them, for people to look at: by default none.

        Args:
            model: in eval mode; no gradients are taken.
            count: how many at the most, spread evenly.
            limit: as for `evaluate`.
        """
        return []

    def predict(self, model: nn.Module, batch: Batch) -> Prediction:
        """The training loss with the logits behind it, for distillation: by default the model's own."""
        return own_prediction(model, batch)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The training loss, a scalar: that of `predict` where a task has its own, else the model's."""
        if type(self).predict is not Task.predict:
            return self.predict(model, batch).loss
        return own_loss(model, batch)

    def before_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Changes what changes in the course of a training, such as a weight of the loss that rises.

        Args:
            step: optimiser steps that are done.
            steps: of the training.
        """

    @torch.no_grad()
    def measure_on(self, model: Any, items: Sequence[Any]) -> dict[str, float]:
        """How good a model in evaluation mode is on training items: by default their loss, the mean over batches of 32."""
        parts = [items[start : start + MEASURED] for start in range(0, len(items), MEASURED)]
        losses = [float(self.loss(model, self.collate(part))) * len(part) for part in parts]
        return {"loss": sum(losses) / len(items)}

    def training_batches(self, samples: int, batch_size: int) -> list[Batch]:
        """Training items spread evenly, or all if there are fewer, as `loss` takes them: for what looks at the loss of a model."""
        data: Any = self.still_data()
        return self._spread(data, min(samples, len(data)), batch_size)

    def shown(self, samples: int, batch_size: int, by_loss: bool) -> tuple[list[Batch], Loss]:
        """What a method is shown, and the loss on it."""
        if by_loss:
            return self.training_batches(samples, batch_size), self.loss
        return self.calibration(samples, batch_size), own_loss

    def calibration(self, samples: int, batch_size: int) -> list[Batch]:
        """Training inputs that the model takes as `model(**batch)`, for pruners: items spread evenly, the same at every
        call.

        Raises:
            PrunusError: there are fewer items.
        """
        return self._spread(self.still_data(), samples, batch_size)

    def _spread(self, data: Any, samples: int, batch_size: int) -> list[Batch]:
        places = spread(torch.arange(len(data)), samples)
        return [self.collate([data[place] for place in part.tolist()]) for part in torch.split(places, batch_size)]

    def check_calibration(self, samples: int) -> None:
        """Fails early, with a `PrunusError`, where `calibration` has not so many samples: by default training items."""
        size = len(self.still_data())  # type: ignore[arg-type]
        if samples > size:
            raise PrunusError(
                "calibration.samples", samples, f"there are {size} training items; take at most that many"
            )

    def data_state(self) -> list[Any]:
        """What tells states of the task's data apart, beside its settings, in JSON: a model that was trained on them before is made anew
        once it changes.
        """
        return []

    def sample(self, places: Sequence[int]) -> Batch:
        """A batch of items by number, counted round and round, for measuring and tracing: by default of the training items."""
        data: Any = self.still_data()
        return self.collate([data[place % len(data)] for place in places])

    def example(self, model: Any, batch_size: int) -> Callable[[], object]:
        """One inference call on so many inputs, for measuring: by default a forward pass over a `sample`."""
        batch = for_model(self.sample(range(batch_size)), model)
        return lambda: model(**batch)

    def check(self) -> None:
        """Fails early, with a `PrunusError`, where data or packages are missing."""

    def check_split(self, split: Split) -> None:
        """Fails early, with a `PrunusError`, where a split has no data: by default both have."""

    def check_loss(self) -> None:
        """Fails early, with a `PrunusError`, where the model that the task is for has no training loss: by default never."""

    def for_model(self, folder: Path) -> Self:
        """The task as the model in `folder` needs it, such as with the model's own tokenizer."""
        return self

    models: ClassVar[Sequence[str]] = ()
    """Classes of the models that it is for; none where it does not go by them."""
    takes: ClassVar[str] = "others"
    """What models it is for, for errors, where they are not listed."""

    @classmethod
    def suits(cls, config: Any) -> bool:
        """Whether the task is one for models with this config."""
        return not cls.models or architecture(config) in cls.models

    def refuse_unsuited(self, config: Any) -> None:
        """Refuses a model of a kind that the task is not for.

        Raises:
            PrunusError: naming both, and the tasks for such a model.
        """
        if self.suits(config):
            return
        choosy = {name: cls for name, cls in known(Task, "name").items() if _chooses(cls)}
        fitting = sorted(name for name, cls in choosy.items() if cls.suits(config))
        model = (config.architectures or [config.model_type])[0]
        others = f"Tasks for such a model: {', '.join(fitting)}" if fitting else "No task is for such a model"
        raise PrunusError(
            "task", self.name, f"the task does not know how such a model takes its inputs ({model}); it is for "
            f"{', '.join(self.models) or self.takes}. {others}",
        )  # fmt: skip

    def remarks(self) -> list[str]:
        """What a reader of the figures is to know of the data."""
        return []

    def damaged(self) -> Iterator[PrunusError]:
        """What is wrong with the data and would only be met when it is used: what `prunus check` looks for, and `check` does not."""
        return iter(())

    def check_model(self, folder: Path) -> None:
        """Fails early, with a `PrunusError`, where the model in `folder` cannot take the task's data: by default where it is none of those
        that the task says it `suits`.
        """
        if _chooses(type(self)):
            self.refuse_unsuited(read_config(str(folder)))

    def save_processor(self, folder: Path) -> None:
        """Puts beside a checkpoint what turns raw inputs into tensors."""

    def warm_start(self, **sizes: int) -> PreTrainedModel:
        """A model for this task that needs no hub, to be trained on the spot."""
        raise PrunusError(
            "model.warm_start", sizes, f"the {self.name} task has no model of its own; give model.path, or model.random"
        )

    def skeleton(self, **sizes: int) -> PreTrainedModel:
        """The model of `warm_start` on the current device, without reading or training anything."""
        return self.warm_start(**sizes)


MEASURED = 32
"""Training items that are measured at a time."""


def _chooses(cls: type[Task]) -> bool:
    """Whether a task says what models it is for."""
    return bool(cls.models) or any("suits" in vars(one) for one in cls.__mro__ if one is not Task)


def _says_metrics(metrics: object) -> bool:
    if isinstance(metrics, property):
        return True
    return isinstance(metrics, Mapping) and bool(metrics) and all(isinstance(one, Metric) for one in metrics.values())
