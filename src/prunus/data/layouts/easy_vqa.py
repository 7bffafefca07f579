"""Layout `easy_vqa`: easy-VQA, one shape in one colour and questions whose answer is one of 13 words, of the pip package `easy-vqa`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from prunus.data.easy_vqa import questions_of
from prunus.data.source import Data, Found


class EasyVQAData(Data):
    """easy-VQA, which the package carries: 4,000 training and 1,000 test images with 38,575 and 9,673 questions."""

    layout: Literal["easy_vqa"] = "easy_vqa"
    split: Literal["train", "test"] = "train"
    """One of two."""

    def inputs(self) -> list[Path]:
        return [Path(path) for path in list(questions_of(self.split)[1].values())[:1]]

    @property
    def title(self) -> str:
        return f"easy-VQA [{self.split}]"

    def rows(self) -> Iterator[Found]:
        rows, paths = questions_of(self.split)
        for number, (image, question, answer) in enumerate(rows, start=1):
            yield Found(f"{self.title}, row {number}", Path(), {
                "image": paths[image], "question": question, "question_id": number, "answers": answer,
            })  # fmt: skip
