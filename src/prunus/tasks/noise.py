"""Random inputs for any model: no data, no meaning, but every step of a recipe runs, at whatever size the config says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset, StackDataset, default_collate
from transformers import AutoConfig

from prunus.calibration import Batch
from prunus.checkpoint import memory, understood
from prunus.errors import PrunusError
from prunus.losses import text_targets
from prunus.metric import Metric
from prunus.tasks.task import Task
from prunus.tasks.text import check_length
from prunus.typed import Seed


class Noise(Task):
    """Random images, words and labels in the shapes that a model's config asks for; its metric is the loss on them.

    For images with classes (ViT), images with texts (CLIP, BLIP-2) and texts (T5, decoders). Figures say nothing about a
    model; they say that a recipe works before its data are at hand.
    """

    name: Literal["noise"] = "noise"
    config: str | None = None
    """Folder of the model; None is the evaluated one."""
    items: int = Field(default=64, ge=2, le=1_000_000)
    """Training items, which are also those of the evaluation."""
    length: int = Field(default=16, ge=4, le=1_000_000)
    """Tokens per text."""
    seed: Seed = 0
    """Of the random numbers."""

    metrics: ClassVar = {"loss": Metric(unit="plain", higher_is_better=False)}

    def check_model(self, folder: Path) -> None:
        """Refuses sequences longer than the model's positions, and inputs larger than a quarter of the memory."""
        _ = self.for_model(folder)._inputs

    def for_model(self, folder: Path) -> Self:
        """The same with the shapes of the model in `folder`, unless another is named."""
        return self if self.config else self.model_copy(update={"config": str(folder)})

    @cached_property
    def _inputs(self) -> dict[str, Tensor]:
        """Every item's tensors, stacked."""
        if self.config is None:
            raise PrunusError("task.config", None, "name the folder of a model")
        with understood(self.config, doing="read the config"):
            config = AutoConfig.from_pretrained(self.config, trust_remote_code=False)
        generator = torch.Generator().manual_seed(self.seed)
        text = config.get_text_config() if config.model_type != "vit" else config
        vision = getattr(config, "vision_config", config)
        inputs: dict[str, Tensor] = {}
        if getattr(vision, "image_size", None):
            size = vision.image_size
            height, width = size if isinstance(size, list | tuple) else (size, size)
            shape = (self.items, getattr(vision, "num_channels", 3), height, width)
            if 16 * math.prod(shape) > memory():
                raise PrunusError(
                    "task.items", self.items, f"so many images of {height} × {width} do not fit into memory"
                )
            inputs["pixel_values"] = torch.randn(shape, generator=generator)
        if getattr(text, "vocab_size", None) is None:
            inputs["labels"] = torch.randint(config.num_labels, (self.items,), generator=generator)
            return inputs
        if 64 * self.items * self.length > memory():
            raise PrunusError("task.length", self.length, f"{self.items} texts so long do not fit into memory")
        check_length(config, self.length, 3)
        words = torch.randint(3, text.vocab_size, (self.items, self.length), generator=generator)
        inputs["input_ids"] = words
        image_token = getattr(config, "image_token_index", None)
        if image_token is not None:
            words = words.masked_fill(words == image_token, 3)
            queries = torch.full((self.items, config.num_query_tokens), image_token)
            inputs["input_ids"] = torch.cat([queries, words], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if getattr(text, "is_encoder_decoder", False):
            inputs["labels"] = torch.randint(3, text.vocab_size, (self.items, self.length // 2), generator=generator)
        elif "pixel_values" not in inputs or image_token is not None:
            inputs["labels"] = text_targets(config, inputs["input_ids"])
        return inputs

    def train_data(self) -> Dataset[Any]:
        return StackDataset(**self._inputs)  # type: ignore[arg-type]

    def collate(self, items: Sequence[Any]) -> Batch:
        batch: Batch = default_collate(list(items))
        return batch

    def calibration(self, samples: int, batch_size: int) -> list[Batch]:
        count = min(samples, self.items)
        return [
            {name: value[start : min(start + batch_size, count)] for name, value in self._inputs.items()}
            for start in range(0, count, batch_size)
        ]

    def check_calibration(self, samples: int) -> None:
        """There is nothing to refuse: of fewer items all are taken."""

    @torch.no_grad()
    def evaluate(self, model: Any, limit: int | None = None, progress: bool = True) -> dict[str, float]:
        model.eval()
        batches = self.calibration(limit or self.items, 8)
        return {"loss": sum(float(self.loss(model, batch)) for batch in batches) / len(batches)}
