"""Texts for pictures and pictures for texts, on a user's own data, by models that compare both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from prunus.calibration import Batch
from prunus.errors import PrunusError
from prunus.metric import Metric
from prunus.metrics import RECALLS, recall_figures, recall_rows, with_interval
from prunus.tasks.exhibit import Exhibit
from prunus.tasks.kinds import DualEncoder, blip_words
from prunus.tasks.on_data import DataTask, Row, Rows
from prunus.typed import Count, Steps

RECALL = [f"{way}_r{k}" for way in ("text", "image") for k in RECALLS]
Seen = tuple[Tensor, Tensor | None, list[str]]
"""Features of a picture, what may be looked at again, and its captions."""


class Retrieval(DataTask):
    """Retrieval. A training item is a picture with one of its captions; in the evaluation split, captions are sought for every picture, and
    pictures for every caption.
    """

    name: Literal["retrieval"] = "retrieval"
    rerank: int | None = Field(default=None, ge=max(RECALLS), le=1_000_000)
    """Candidates that a model with a matching head (BLIP) looks at again, for every query: no fewer than a recall counts. None ranks by
    similarity alone."""
    words: Literal["as_written", "blip"] = "as_written"
    """How captions are given to the model: `blip` is in small letters, without punctuation, thirty words at the most."""
    length: Count | None = None
    """Tokens of a caption at the most; None is what the model has positions for."""

    soft_target_steps: Steps | None = None
    """Of a training, in which the share of what a model with momentum copies says itself rises from zero among its targets; None has all of it
    from the first step on."""

    metrics: ClassVar = {name: Metric() for name in ("mean_recall", *RECALL)}
    needs: ClassVar = ("image", "captions")
    by_picture: ClassVar = True
    kinds: ClassVar = DualEncoder

    def check_model(self, folder: Any) -> None:
        super().check_model(folder)
        if self.rerank is not None and not self.for_model(folder).kind.rereads:
            raise PrunusError("task.rerank", self.rerank, "the model cannot look at pairs again; leave it out")
        if self.soft_target_steps is not None and not hasattr(self.for_model(folder).kind.config, "soft_target_weight"):
            raise PrunusError("task.soft_target_steps", self.soft_target_steps, "the model has no momentum copies")

    def still_data(self) -> Dataset[Any]:
        return Rows.of_parts(self.rows("train"), "captions")

    def said(self, caption: str) -> str:
        """A caption as the model is given it."""
        return blip_words(caption) if self.words == "blip" else caption

    def collate(self, items: Sequence[Any]) -> Batch:
        rows, sized = self.versions(items)
        texts = [self.said(row["captions"][row["part"]]) for row in rows]
        images, numbers = [self.images(row)[0] for row in rows], [row["row"] for row in rows]
        batch: Batch = self.kind.batch(images, texts, numbers, sized, self.length)
        return batch

    def before_step(self, model: Any, step: int, steps: int) -> None:
        if self.soft_target_steps is not None:
            model.soft_target_share = min(1.0, step / self.soft_target_steps)

    def calibration(self, samples: int, batch_size: int) -> list[Batch]:
        """Pairs alone: a model with a matching head then reads every text while it looks at its picture."""
        batches = super().calibration(samples, batch_size)
        return [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]

    def read_off(self, model: Any, rows: Sequence[Row]) -> Sequence[Seen]:
        """What the model makes of each picture, with its captions."""
        features, states = self.kind.embed_images(model, [self.images(row)[0] for row in rows])
        kept: Sequence[Tensor | None] = [None] * len(rows) if self.rerank is None or states is None else list(states)
        return [(feature, state, row["captions"]) for feature, state, row in zip(features, kept, rows, strict=True)]

    def tell(self, model: Any, rows: Sequence[Row]) -> Sequence[Exhibit]:
        """Of the first captions of these rows the one that is most similar to each picture."""
        captions = [row["captions"][0] for row in rows]
        texts = self.kind.embed_texts(model, [self.said(caption) for caption in captions], self.length)
        images, _ = self.kind.embed_images(model, [self.images(row)[0] for row in rows])
        nearest = (images @ texts.T).argmax(1).tolist()
        asked = "Which of the captions that are shown here?"
        return [Exhibit(captions[place], right, asked) for place, right in zip(nearest, captions, strict=True)]

    def finish(self, model: Any, found: Sequence[Seen]) -> Sequence[Tensor]:
        """What each picture and its captions add to the sums."""
        texts = [self.said(caption) for _, _, captions in found for caption in captions]
        owners = [image for image, (_, _, captions) in enumerate(found) for _ in captions]
        parts = [texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size)]
        said = torch.cat([self.kind.embed_texts(model, part, self.length) for part in parts])
        similar = torch.stack([feature for feature, _, _ in found]) @ said.T
        if self.rerank is None:
            return list(recall_rows(similar, similar.T, owners))
        states = [state for _, state, _ in found if state is not None]
        of_images, of_texts = self.kind.look_again(
            model, similar, states, texts, self.rerank, self.length, self.batch_size
        )
        return list(recall_rows(of_images, of_texts, owners))

    def figures(self, found: Sequence[Tensor]) -> dict[str, float]:
        """The recalls, and their mean with an interval."""
        return with_interval(torch.stack(list(found)), recall_figures, "mean_recall")
