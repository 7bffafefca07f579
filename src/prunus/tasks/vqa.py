"""Visual question answering on a user's own data, by any model that speaks about images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from prunus.calibration import Batch
from prunus.errors import PrunusError
from prunus.metric import Metric
from prunus.metrics import answer_summary, vqa_accuracy, yes_or_no
from prunus.tasks.exhibit import Exhibit
from prunus.tasks.on_data import Row
from prunus.tasks.speaking import SpeakingTask
from prunus.typed import Count


class Vqa(SpeakingTask):
    """Questions about images. Answers are generated, or chosen from a list, and compared with those of people as VQAv2 does."""

    name: Literal["vqa"] = "vqa"
    answer_by: Literal["generation", "ranking"] = "generation"
    """Whether the model writes the answer, or the likeliest of `candidates` is taken."""
    candidates: Path | list[str] | None = None
    """What ranking chooses from: answers, a JSON file with a list of them, or a text file with one a line; None is the most frequent answers
    of the training rows, 3,128 at the most, as many as BLIP's authors take for VQAv2."""
    best: Count = 128
    """Candidates that ranking looks at for each question: those whose first token is likeliest."""
    new_tokens: Count = 10
    """Tokens of a generated answer at the most."""

    metrics: ClassVar = {"accuracy": Metric(), "accuracy_yes_no": Metric(), "accuracy_other": Metric()}
    needs: ClassVar = ("image", "question", "answers")

    @model_validator(mode="after")
    def _candidates_are_used(self) -> Vqa:
        if self.candidates is not None and self.answer_by == "generation":
            raise PrunusError("candidates", self.candidates, "nothing is chosen from them; set answer_by: ranking")
        return self

    @property
    def usual_prompt(self) -> str:
        return str(self.kind.prompt)

    def check(self) -> None:
        super().check()
        if self.answer_by == "ranking":
            _ = self.choices

    @cached_property
    def choices(self) -> list[str]:
        """What ranking chooses from.

        Raises:
            PrunusError: the file cannot be read, or there is none.
        """
        if isinstance(self.candidates, Path):
            lines = _lines(self.candidates)
        elif self.candidates is not None:
            lines = self.candidates
        else:
            given = Counter(answer.strip() for answers in self.rows("train")["answers"] for answer in answers)
            lines = [answer for answer, _ in given.most_common() if answer][:MOST_CANDIDATES]
        found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
        if not found:
            raise PrunusError("task.candidates", str(self.candidates), "there are none in it; give one answer a line")
        return found

    def collate(self, items: Sequence[Row]) -> Batch:
        rows, _ = self.versions(items)
        images, prompts = self.asked(rows)
        batch: Batch = self.kind.batch(images, prompts, [row["answers"] for row in rows])
        return batch

    def read_off(self, model: Any, rows: Sequence[Row]) -> Sequence[tuple[float, bool]]:
        """How far each answer agrees with people's, and whether the question is one of yes or no."""
        return [
            (vqa_accuracy(answer, row["answers"]), yes_or_no(row["answers"]))
            for answer, row in zip(self.answers(model, rows), rows, strict=True)
        ]

    def answers(self, model: Any, rows: Sequence[Row]) -> list[str]:
        """The model's, to the question of each row."""
        if self.answer_by == "generation":
            return self.written(model, rows)
        scores = self.kind.score(model, *self.asked(rows), self.choices, self.best)
        return [self.choices[place] for place in scores.argmax(1).tolist()]

    def tell(self, model: Any, rows: Sequence[Row]) -> Sequence[Exhibit]:
        """Answers beside the most frequent ones of people."""
        right = [", ".join(answer for answer, _ in Counter[str](row["answers"]).most_common(3)) for row in rows]
        return [
            Exhibit(answer, most, row["question"])
            for answer, most, row in zip(self.answers(model, rows), right, rows, strict=True)
        ]

    def figures(self, found: Sequence[tuple[float, bool]]) -> dict[str, float]:
        """Accuracies, of all questions with an interval."""
        return answer_summary(found)


MOST_CANDIDATES = 3128


def _lines(file: Path) -> list[str]:
    """Answers in a file."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        found = json.loads(text) if file.suffix == ".json" else text.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise PrunusError("task.candidates", str(file), f"it cannot be read ({error})") from None
    if not isinstance(found, list) or not all(isinstance(line, str) for line in found):
        raise PrunusError("task.candidates", str(file), "it holds no list of texts")
    return found
