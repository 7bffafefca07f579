"""A task of one's own: texts that count. Known to prunus once it is imported: `--import own_task.py`."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from prunus.tasks import Metric, Task


class Counting(Task):
    """Texts that count from anywhere up to `words`, and from there go on at zero; measured in bits per number."""

    name: Literal["counting"] = "counting"
    words: int = 16
    length: int = 8
    """Numbers of a text."""

    metrics: ClassVar = {"bits": Metric(unit="plain", higher_is_better=False)}

    def train_data(self) -> list[Tensor]:
        return [torch.arange(start, start + self.length) % self.words for start in range(self.words)]

    def collate(self, items: Sequence[Tensor]) -> dict[str, Any]:
        numbers = torch.stack(list(items))
        return {"input_ids": numbers, "labels": numbers}

    @torch.no_grad()
    def evaluate(self, model: Any, limit: int | None = None, progress: bool = True) -> dict[str, float]:
        loss = self.loss(model.eval(), self.collate(self.train_data()[:limit]))
        return {"bits": float(loss) / math.log(2)}
