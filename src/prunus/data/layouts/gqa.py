"""Layout `gqa`: GQA, questions made from scene graphs, with one answer each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from prunus.data.files import json_of
from prunus.data.layouts.published import Published
from prunus.data.source import Found


class GQA(Published):
    """GQA as its authors publish it: `train_balanced_questions.json` or, not balanced, `train_all_questions` (a folder of files); images in
    `images`.
    """

    layout: Literal["gqa"] = "gqa"
    home: ClassVar = "https://cs.stanford.edu/people/dorarad/gqa/download.html"
    splits: ClassVar = ("train", "val", "testdev", "test")
    balanced: bool = True
    """Of all questions, those whose answers are about as frequent as one another."""

    def inputs(self) -> list[Path]:
        name = f"{self.split}_{'balanced' if self.balanced else 'all'}_questions"
        found = self.find(f"{name}.json", name)
        return sorted(found.glob("*.json")) if found.is_dir() else [found]

    def rows(self) -> Iterator[Found]:
        folder = self.find("images")
        for file in self.inputs():
            for number, (name, question) in enumerate(json_of(file).items(), start=1):
                yield Found(f"{file}, row {number}", folder, {
                    "image": f"{question['imageId']}.jpg", "question": question["question"], "question_id": name,
                    "answers": question.get("answer"),
                })  # fmt: skip
