"""Visual question answering on a user's own data, by any model that speaks about images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from prunus.calibration import Batch
from prunus.errors import PrunusError
from prunus.metric import Metric
from prunus.metrics import answer_figures, answer_rows, vqa_accuracy, with_interval, yes_or_no
from prunus.tasks.kinds import Speaker
from prunus.tasks.on_data import DataTask, Row, said
from prunus.typed import Count


class Vqa(DataTask):
    """Questions about images. Answers are generated, or chosen from a list, and compared with those of people as VQAv2 does."""

    name: Literal["vqa"] = "vqa"
    prompt: str | None = None
    """How a question is put, such as "Question: {question} Short answer:"; None is how it is usually put to such a model."""
    answer_by: Literal["generation", "ranking"] = "generation"
    """Whether the model writes the answer, or the likeliest of `candidates` is taken."""
    candidates: Path | list[str] | None = None
    """What ranking chooses from: answers, or a text file with one a line; None is every answer of the training rows."""
    best: Count = 128
    """Candidates that ranking looks at for each question: those whose first token is likeliest."""
    new_tokens: Count = 10
    """Tokens of a generated answer at the most."""
    beams: Count = 1
    """Beams of the generation."""

    metrics: ClassVar = {"accuracy": Metric(), "accuracy_yes_no": Metric(), "accuracy_other": Metric()}
    needs: ClassVar = ("image", "question", "answers")
    kinds: ClassVar = Speaker

    @model_validator(mode="after")
    def _candidates_are_used(self) -> Vqa:
        if self.candidates is not None and self.answer_by == "generation":
            raise PrunusError("candidates", self.candidates, "nothing is chosen from them; set answer_by: ranking")
        return self

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
            try:
                lines = self.candidates.read_text(encoding="utf-8").splitlines()
            except (OSError, ValueError) as error:
                raise PrunusError(
                    "task.candidates", str(self.candidates), f"it cannot be read as text ({error})"
                ) from None
        elif self.candidates is not None:
            lines = self.candidates
        else:
            lines = [answer for answers in self.rows("train")["answers"] for answer in answers]
        found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
        if not found:
            raise PrunusError("task.candidates", str(self.candidates), "there are none in it; give one answer a line")
        return found

    def _asked(self, rows: Sequence[Row]) -> tuple[list[Any], list[str]]:
        """Images and prompts."""
        prompt = self.prompt or self.kind.prompt
        return [self.images(row) for row in rows], [said(prompt, row, "prompt") for row in rows]

    def collate(self, items: Sequence[Row]) -> Batch:
        rows, _ = self.versions(items)
        images, prompts = self._asked(rows)
        batch: Batch = self.kind.batch(images, prompts, [row["answers"] for row in rows])
        return batch

    def read_off(self, model: Any, rows: Sequence[Row]) -> Sequence[tuple[float, bool]]:
        """How far each answer agrees with people's, and whether the question is one of yes or no."""
        images, prompts = self._asked(rows)
        if self.answer_by == "generation":
            given = self.kind.generate(model, images, prompts, self.new_tokens, self.beams)
        else:
            choices = self.choices
            scores = self.kind.score(model, images, prompts, choices, self.best)
            given = [choices[place] for place in scores.argmax(1).tolist()]
        return [
            (vqa_accuracy(answer, row["answers"]), yes_or_no(row["answers"]))
            for answer, row in zip(given, rows, strict=True)
        ]

    def figures(self, found: Sequence[tuple[float, bool]]) -> dict[str, float]:
        """Accuracies, of all questions with an interval."""
        measured = with_interval(answer_rows(found), answer_figures, "accuracy")
        return {
            name: value for name, value in measured.items() if not math.isnan(value)
        }  # without those of no question
