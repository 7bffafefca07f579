"""Chats about images, on a user's own data: what generative models are trained and repaired with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch

from prunus.batches import for_model
from prunus.calibration import Batch
from prunus.data import IMAGE_PLACE
from prunus.metric import Metric
from prunus.metrics import with_interval
from prunus.tasks.exhibit import Exhibit
from prunus.tasks.kinds import Generative
from prunus.tasks.on_data import DataTask, Row


class Instruction(DataTask):
    """Chats, with an image, several or none. What the assistant says is learnt, and measured by its perplexity. Images stand before the first message."""

    name: Literal["instruction"] = "instruction"

    metrics: ClassVar = {"perplexity": Metric(unit="plain", higher_is_better=False)}
    needs: ClassVar = ("messages",)
    kinds: ClassVar = Generative

    def collate(self, items: Sequence[Row]) -> Batch:
        rows, _ = self.versions(items)
        chats = [chat_of(row) for row in rows]
        batch: Batch = self.kind.chats([self.images(row) for row in rows], chats)
        return batch

    def read_off(self, model: Any, rows: Sequence[Row]) -> Sequence[tuple[float, int]]:
        """Of each chat the negative log-likelihood of what the assistant says, and its tokens."""
        found = []
        for row in rows:
            batch = for_model(self.collate([row | {"part": 0}]), model)
            prediction = self.predict(model, batch)
            count = int(prediction.counted.sum())
            found.append((float(prediction.loss) * count, count))
        return found

    def tell(self, model: Any, rows: Sequence[Row]) -> Sequence[Exhibit]:
        """What is answered to the first message of each chat."""
        chats = [[(one["role"], one["content"]) for one in chat_of(row)] for row in rows]
        asked = [next((text for role, text in chat if role == "user"), "") for chat in chats]
        right = [next((text for role, text in chat if role == "assistant"), "") for chat in chats]
        given = [
            self.kind.generate(model, [self.images(row)], [prompt], NEW_TOKENS)[
                0
            ]  # rows may differ in how many images they have
            for row, prompt in zip(rows, asked, strict=True)
        ]
        return [Exhibit(*one) for one in zip(given, right, asked, strict=True)]

    def figures(self, found: Sequence[tuple[float, int]]) -> dict[str, float]:
        """Perplexity over all tokens, with an interval over chats."""
        sums = torch.tensor(found, dtype=torch.double)
        return with_interval(sums, lambda of: {"perplexity": (of[..., 0] / of[..., 1]).exp()}, "perplexity")


NEW_TOKENS = 40
"""Of an answer that is shown, at the most."""


def chat_of(row: Row) -> list[dict[str, str]]:
    """The messages of a row, without the places of its images."""
    return [{**message, "content": message["content"].replace(IMAGE_PLACE, "").strip()} for message in row["messages"]]
