"""What a task offers to a run: data, a loss, a metric, and an example call to measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from prunus.calibration import Batch
from prunus.losses import Prediction


class Task(Protocol):
    """A task is a frozen dataclass of settings; nothing is read before a method needs it."""

    @property
    def name(self) -> str:
        """What recipes call it."""

    @property
    def headline(self) -> str:
        """The metric that tables and plots show."""

    def check(self) -> None:
        """Fails early, with a `PrunusError`, where data or packages are missing."""

    def for_model(self, folder: Path) -> Task:
        """The task as a saved model needs it, such as with the model's own tokenizer."""

    def check_model(self, folder: Path) -> None:
        """Fails early, with a `PrunusError`, where the model in `folder` cannot take the task's data."""

    def skeleton(self, **sizes: int) -> PreTrainedModel:
        """The model of `warm_start`, built on the current device without reading or training anything."""

    def warm_start(self, **sizes: int) -> PreTrainedModel:
        """A model for this task that needs no hub, to be trained on the spot."""

    def train_data(self) -> Dataset[Any]:
        """Training items, by index; deterministic, so that a resumed run sees the same."""

    def collate(self, items: Sequence[Any]) -> Batch:
        """A batch of items."""

    def calibration(self, samples: int, batch_size: int) -> list[Batch]:
        """Training inputs that the model takes as `model(**batch)`, for pruners; the same at every call."""

    def predict(self, model: nn.Module, batch: Batch) -> Prediction:
        """The training loss, with the logits behind it."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The training loss, a scalar."""

    def evaluate(self, model: PreTrainedModel, limit: int | None = None, progress: bool = True) -> dict[str, float]:
        """Metrics on the evaluation split, or on its first `limit` items."""

    def example(self, model: PreTrainedModel, batch_size: int) -> Callable[[], object]:
        """One inference call on `batch_size` real inputs, for measuring."""

    def save_processor(self, folder: Path) -> None:
        """Puts beside a checkpoint what turns raw inputs into tensors."""
