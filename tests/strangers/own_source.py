"""A source of one's own: the mean of the weights of several folders (a model soup)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from transformers import PreTrainedModel

from prunus import load_model
from prunus.checkpoint import bare_model
from prunus.sources import Source
from prunus.tasks import Task


class SoupSource(Source):
    """Models of one config, averaged."""

    source: Literal["soup"] = "soup"
    folders: tuple[str, ...] = Field(min_length=1)

    def skeleton(self, task: Task) -> PreTrainedModel:
        return bare_model(self.folders[0])

    def build(self, task: Task) -> PreTrainedModel:
        first, *others = (load_model(folder) for folder in self.folders)
        with torch.no_grad():
            for name, parameter in first.named_parameters():
                same = [other.get_parameter(name) for other in others]
                parameter.copy_(torch.stack([parameter, *same]).mean(0))
        return first
