"""Source `warm_start`: a model that a task makes by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from transformers import PreTrainedModel

from prunus.errors import PrunusError
from prunus.sources.source import Source
from prunus.tasks import Task


class WarmStartSource(Source):
    """The task's own model, which needs no hub."""

    source: Literal["warm_start"] = "warm_start"
    warm_start: dict[str, int]
    """Its sizes."""

    def skeleton(self, task: Task) -> PreTrainedModel:
        return self._made(task.skeleton)

    def build(self, task: Task) -> PreTrainedModel:
        return self._made(task.warm_start)

    def _made(self, make: Callable[..., PreTrainedModel]) -> PreTrainedModel:
        try:
            return make(**self.warm_start)
        except TypeError as error:
            raise PrunusError("model.warm_start", self.warm_start, str(error).rpartition(") ")[2]) from None
