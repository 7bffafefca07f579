"""Source `path`: a model of the hub, or a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel

from prunus.checkpoint import bare_model, local_folder
from prunus.sources.source import Source
from prunus.tasks import Task


class PathSource(Source):
    """A hub id, or a folder made by `save_pretrained`."""

    source: Literal["path"] = "path"
    path: str
    """Hub id or folder."""

    def skeleton(self, task: Task) -> PreTrainedModel:
        return bare_model(self.path)

    def folder(self, cache: Path) -> Path:
        return local_folder(self.path)
