"""What tasks have in common in which a model says something about pictures: how it is asked, and how it goes on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from PIL.Image import Image
from pydantic import Field, model_validator

from prunus.errors import PrunusError
from prunus.tasks.kinds import Speaker
from prunus.tasks.on_data import DataTask, Row, said
from prunus.typed import Count


class SpeakingTask(DataTask):
    """Base of the tasks in which a model says something about pictures."""

    prompt: str | None = None
    """How the model is asked, such as "Question: {question} Short answer:"; None is how such a model is usually asked."""
    new_tokens: Count = 30
    """Tokens at the most that are generated."""
    least_tokens: int = Field(default=0, ge=0, le=1_000_000)
    """Tokens at the least that are generated."""
    beams: Count = 1
    """Beams of the generation; one takes the likeliest token each time."""
    length_penalty: float = Field(default=1.0, ge=-100, le=100)
    """Which of the beams wins: its log-likelihood is divided by its length to this power, so less than 0 prefers short texts."""

    kinds: ClassVar = Speaker

    @model_validator(mode="after")
    def _settings_fit(self) -> SpeakingTask:
        if self.least_tokens > self.new_tokens:
            raise PrunusError(
                "least_tokens", self.least_tokens, f"at the most {self.new_tokens} are generated; take less"
            )
        if self.beams == 1 and self.length_penalty != 1:
            raise PrunusError(
                "length_penalty", self.length_penalty, "with one beam there is no choice; take more beams"
            )
        return self

    @property
    @abstractmethod
    def usual_prompt(self) -> str:
        """How the model is usually asked."""

    def asked(self, rows: Sequence[Row]) -> tuple[list[list[Image]], list[str]]:
        """Images and prompts of rows."""
        prompt = self.usual_prompt if self.prompt is None else self.prompt
        return [self.images(row) for row in rows], [said(prompt, row, "prompt") for row in rows]

    def written(self, model: Any, rows: Sequence[Row]) -> list[str]:
        """What a model says about each of the rows."""
        images, prompts = self.asked(rows)
        how: dict[str, Any] = {"length_penalty": self.length_penalty} if self.beams > 1 else {}
        if self.least_tokens:
            how["min_new_tokens"] = self.least_tokens
        texts: list[str] = self.kind.generate(model, images, prompts, self.new_tokens, self.beams, **how)
        return texts
