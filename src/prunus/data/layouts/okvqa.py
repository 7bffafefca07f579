"""Layout `okvqa`: OK-VQA, questions about COCO images that ask for knowledge of the world."""

from __future__ import annotations

from typing import ClassVar, Literal

from prunus.data.layouts.vqav2 import VQAv2


class OKVQA(VQAv2):
    """OK-VQA as okvqa.allenai.org publishes it: `OpenEnded_mscoco_val2014_questions.json`, `mscoco_val2014_annotations.json`, images of
    COCO in `train2014` and `val2014`.
    """

    layout: Literal["okvqa"] = "okvqa"  # type: ignore[assignment]
    home: ClassVar = "https://okvqa.allenai.org/download.html"
    splits: ClassVar = ("train", "val")
    questions: ClassVar = "OpenEnded_mscoco_{}_questions.json"
    annotations: ClassVar = "mscoco_{}_annotations.json"
