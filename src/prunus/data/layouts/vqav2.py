"""Layout `vqav2`: VQA v2, questions about COCO images with ten answers each."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from prunus.data.files import json_of
from prunus.data.layouts.published import Published
from prunus.data.source import Found


class VQAv2(Published):
    """VQA v2 as visualqa.org publishes it: `v2_OpenEnded_mscoco_train2014_questions.json`, `v2_mscoco_train2014_annotations.json`, images
    in `train2014`, `val2014` and `test2015`. The test splits have no answers.
    """

    layout: Literal["vqav2"] = "vqav2"
    home: ClassVar = "https://visualqa.org/download.html"
    splits: ClassVar[Sequence[str]] = ("train", "val", "test", "test-dev")
    questions: ClassVar = "v2_OpenEnded_mscoco_{}_questions.json"
    annotations: ClassVar = "v2_mscoco_{}_annotations.json"
    years: ClassVar = {"train": "train2014", "val": "val2014", "test": "test2015", "test-dev": "test-dev2015"}

    def inputs(self) -> list[Path]:
        year = self.years[self.split]
        answered = [] if self.split.startswith("test") else [self.find(self.annotations.format(year))]
        return [self.find(self.questions.format(year)), *answered]

    def rows(self) -> Iterator[Found]:
        questions, *answered = self.inputs()
        images = self.years[self.split].replace("-dev", "")
        folder = self.find(images)
        answers = {
            answer["question_id"]: answer["answers"]
            for file in answered
            for answer in json_of(file, _words)["annotations"]
        }
        for number, question in enumerate(json_of(questions)["questions"], start=1):
            yield Found(f"{questions}, row {number}", folder, {
                "image": f"COCO_{images}_{question['image_id']:012d}.jpg", "question": question["question"],
                "question_id": question["question_id"], "answers": answers.get(question["question_id"]),
            })  # fmt: skip


def _words(mapping: dict[str, Any]) -> Any:
    """Of one person's answer its words alone: there are millions of them, and a few thousand different ones."""
    if "answer" in mapping and "answer_id" in mapping:
        return sys.intern(mapping["answer"])
    return mapping
