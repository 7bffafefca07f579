"""Source `random`: a config whose model gets random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import model_validator
from transformers import PreTrainedModel

from prunus.checkpoint import check_config, load_model, random_model, understood
from prunus.sources.source import Source
from prunus.tasks import Task


class RandomSource(Source):
    """A config whose model gets random weights: to try a recipe at any size."""

    source: Literal["random"] = "random"
    random: dict[str, Any]
    """The config, with `model_type` and `architectures`."""

    @model_validator(mode="after")
    def _is_plausible(self) -> RandomSource:
        check_config(self.random, "random")
        return self

    def skeleton(self, task: Task) -> PreTrainedModel:
        return random_model(self.random)

    def build(self, task: Task) -> PreTrainedModel:
        return random_model(self.random)

    def check(self, task: Task, folder: Path) -> None:
        """Runs it: sizes that a model can be built of need not fit one another."""
        with understood("model.random", doing="run the model"), torch.no_grad():
            task.loss(load_model(folder).eval(), task.collate([task.train_data()[0]]))
