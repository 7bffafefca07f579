"""What tasks have in common in which a model says something about pictures: how it is asked, and how it goes on."""

from __future__ import annotations

import string
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from PIL.Image import Image
from pydantic import Field, field_validator, model_validator

from prunus.data import COLUMNS, Needs
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

    @field_validator("prompt")
    @classmethod
    def _columns_are_texts(cls, prompt: str | None) -> str | None:
        texts = [name for name, column in COLUMNS.items() if column.kind in ("text", "number")]
        for name in _places(prompt or ""):
            if name not in texts:
                raise PrunusError("", prompt, f"{{{name}}} is no column with words; there are {', '.join(texts)}")
        return prompt

    @property
    def wanted(self) -> Needs:
        """Those that it `needs`, and those that stand in the prompt."""
        return tuple(dict.fromkeys((*self.needs, *_places(self.prompt or ""))))

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


def _places(prompt: str) -> list[str]:
    """Names in braces.

    Raises:
        PrunusError: a brace is left open, or stands alone.
    """
    try:
        return [name for _, name, _, _ in string.Formatter().parse(prompt) if name is not None]
    except ValueError as error:
        raise PrunusError("", prompt, f"{error}; write {{{{ and }}}} for braces that are meant") from None
