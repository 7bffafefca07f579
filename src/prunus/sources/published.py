"""Source `published`: a checkpoint file as its authors published it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import Field
from transformers import PreTrainedModel

from prunus.errors import PrunusError
from prunus.models import convert, published_skeleton
from prunus.sources.source import Source
from prunus.storage import locked
from prunus.tasks import Task


class PublishedSource(Source):
    """A published checkpoint file, which `prunus convert` reads. The folder is made in the cache, once."""

    source: Literal["published"] = "published"
    published: str
    """The file, such as a `.pth`."""
    family: str | None = None
    """Such as `blip_vqa`; else told from the names in the file."""
    image_size: int | None = Field(default=None, gt=0)
    """Side of the images in pixels; positions are interpolated."""
    head_width: int | None = Field(default=None, gt=0)
    """Width of an attention head, if it is not that of the published models."""

    def skeleton(self, task: Task) -> PreTrainedModel:
        return published_skeleton(self.published, self.family, image_size=self.image_size, head_width=self.head_width)

    def folder(self, cache: Path) -> Path:
        folder = cache / f"published-{self._key()}"
        with locked(folder, "cache", wait=True):
            if not (folder / "model" / "config.json").exists():
                convert(
                    self.published, folder / "model", self.family, image_size=self.image_size, head_width=self.head_width
                )  # fmt: skip
        return folder / "model"

    def _key(self) -> str:
        """What tells converted models apart: the settings, and which state of the file was read."""
        try:
            state = Path(self.published).expanduser().stat()
        except OSError as error:
            raise PrunusError("model.published", self.published, f"it cannot be read ({error.strerror})") from None
        settings = self.model_dump_json(exclude={"train"})
        return hashlib.sha256(f"{settings} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:16]
