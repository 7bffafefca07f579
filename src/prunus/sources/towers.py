"""Source `towers`: a model of one of the papers' shapes with pretrained towers that pip packages carry."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from prunus.calibration import spread
from prunus.data import WHERE, AnyData, open_image
from prunus.models import TowerSizes, bare_with_towers, save_with_towers
from prunus.sources.source import Source
from prunus.tasks import Task
from prunus.typed import Count

SEEN = 64
"""Pictures that features are whitened on, at even distances among all."""


class TowersSource(Source):
    """DINOv2-S and MiniLM as the towers of a ViT classifier, a Segmenter, a dual encoder, or a BLIP that writes captions, answers
    questions, reads two pictures, or matches pictures with texts. What is new in it has to be trained (`train`).
    """

    source: Literal["towers"] = "towers"
    towers: Literal["classifier", "segmenter", "dual_encoder", "captioner", "answerer", "reasoner", "matcher"]
    """The shape."""
    image_size: Count = 112
    """Input side in pixels, a multiple of 14."""
    vision_layers: Count = 6
    """The first layers of DINOv2-S, at most 12."""
    text_layers: Count = 3
    """The first layers of MiniLM, at most 6."""
    labels: Count = 2
    """Classes of a classifier or a Segmenter."""
    pictures: AnyData | None = None
    """Pictures on which the image tower's features get mean zero and variance one; None leaves them as they are."""

    @property
    def sizes(self) -> TowerSizes:
        """How large it is to be."""
        return TowerSizes(self.image_size, self.vision_layers, self.text_layers, self.labels)

    def data_state(self) -> list[Any]:
        return [] if self.pictures is None else [self.pictures.kept.state]

    def skeleton(self, task: Task) -> PreTrainedModel:
        return bare_with_towers(self.towers, self.sizes)

    def folder(self, cache: Path) -> Path:
        settings = self.model_dump_json(exclude={"train"})
        state = json.dumps(self.data_state()) if self.pictures is not None else ""
        key = hashlib.sha256((settings + state).encode()).hexdigest()[:16]
        place = cache / f"towers-{self.towers}-{key}"
        if (place / "config.json").exists():
            return place
        shown = []
        if self.pictures is not None:
            rows = self.pictures.read(("image",))
            places = spread(torch.arange(len(rows)), min(SEEN, len(rows))).tolist()
            shown = [open_image(rows[number]["image"], rows[number][WHERE]) for number in places]
        return save_with_towers(self.towers, self.sizes, shown, place)
