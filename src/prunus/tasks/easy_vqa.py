"""Visual question answering on easy-VQA. The model is a `BlipForQuestionAnswering`, which generates the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import BlipForQuestionAnswering

from prunus.batches import for_model
from prunus.calibration import Batch, spread
from prunus.data import Questions, questions_of
from prunus.losses import Prediction, next_tokens
from prunus.metric import Metric
from prunus.metrics import mean_of, with_interval
from prunus.models import (
    DEC,
    SEP,
    SPECIAL_TOKENS,
    bare_blip,
    image_processor,
    question_states,
    warm_blip,
    word_tokenizer,
)
from prunus.progress import track
from prunus.tasks.task import MEASURED, Task
from prunus.typed import Count

MAX_TOKENS = 12
"""Tokens of the longest question."""


class EasyVQA(Task):
    """easy-VQA. A training item is one image with some of its questions, so the image is encoded once for them all."""

    name: Literal["easy_vqa"] = "easy_vqa"
    image_size: int = Field(default=70, ge=14, le=1024)
    """Side to which images are resized, in pixels."""
    questions_per_item: Count = 5
    """Questions of one image that train together."""
    matching_steps: Count = 450
    """Steps of the question encoder's head start."""
    batch_size: Count = 256
    """Questions per evaluation batch."""

    metrics: ClassVar = {"accuracy": Metric(), "accuracy_yes_no": Metric(), "accuracy_other": Metric()}

    measured_on_items: ClassVar = ("loss", "accuracy")

    def check(self) -> None:
        questions_of("test")

    @cached_property
    def words(self) -> list[str]:
        """The vocabulary: special tokens, then every word of the training questions and answers."""
        asked = {word for _, question, _ in self._train.rows for word in question.rstrip("?").split()}
        words = asked | {answer for _, _, answer in self._train.rows}
        return [*SPECIAL_TOKENS, "?", *sorted(words)]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {word: place for place, word in enumerate(self.words)}

    @cached_property
    def tokenizer(self) -> Any:
        """That of the vocabulary."""
        return word_tokenizer(self.words)

    def skeleton(self, **sizes: int) -> BlipForQuestionAnswering:
        return bare_blip(self.words, self.image_size, **sizes)

    def warm_start(self, **sizes: int) -> BlipForQuestionAnswering:
        return warm_blip(self.words, self._train, self.collate, self.matching_steps, **sizes)

    def train_data(self) -> Dataset[Any]:
        return self._train

    @cached_property
    def _train(self) -> Questions:
        return Questions("train", self.image_size, self.questions_per_item)

    @cached_property
    def _test(self) -> Questions:
        return Questions("test", self.image_size, self.questions_per_item)

    def collate(self, items: Sequence[tuple[Tensor, list[str], list[str]]]) -> Batch:
        """Images (I, 3, S, S); questions (Q, T) with `image_of_question` (Q,); answers [DEC] word [SEP] as (Q, 3)."""
        questions = [question for _, group, _ in items for question in group]
        answers = [answer for _, _, group in items for answer in group]
        tokens = self.tokenizer(questions, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt")
        return {
            "pixel_values": torch.stack([image for image, _, _ in items]),
            "image_of_question": torch.repeat_interleave(torch.tensor([len(group) for _, group, _ in items])),
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "labels": torch.tensor([[DEC, self._index[answer], SEP] for answer in answers]),
        }

    def calibration(self, samples: int, batch_size: int) -> list[Batch]:
        """One question each of images spread evenly over the training split, with its answer for the decoder."""
        rows = {row[0]: row for row in self._train.rows}
        chosen = [rows[image] for image in spread(torch.tensor(list(rows)), samples).tolist()]
        return [
            {
                **self._inputs(self._train, part),
                "decoder_input_ids": torch.tensor([[DEC, self._index[answer]] for _, _, answer in part]),
            }
            for part in (chosen[start : start + batch_size] for start in range(0, samples, batch_size))
        ]

    def _inputs(self, data: Questions, rows: Sequence[tuple[int, str, str]]) -> Batch:
        """One question an image, as the model takes them."""
        tokens = self.tokenizer([question for _, question, _ in rows], padding=True, return_tensors="pt")
        return {
            "pixel_values": data.pixels(torch.tensor([image for image, _, _ in rows])),
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
        }

    def predict(self, model: nn.Module, batch: Batch) -> Prediction:
        """The model's own loss and the logits of its answers, with each image encoded once for all of its questions."""
        blip: Any = model
        batch = for_model(batch, model)
        labels = batch.pop("labels")
        states = question_states(blip.vision_model, blip.text_encoder, **batch)
        answer = blip.text_decoder(
            input_ids=labels,
            encoder_hidden_states=states,
            encoder_attention_mask=batch["attention_mask"],
            labels=labels,
        )
        return next_tokens(answer.loss, answer.logits, labels)

    @torch.no_grad()
    def measure_on(self, model: Any, items: Sequence[Any]) -> dict[str, float]:
        """Their loss, and the share of questions of which the answer is the likeliest of all words."""
        parts = [items[start : start + MEASURED] for start in range(0, len(items), MEASURED)]
        loss, hits, asked = 0.0, 0, 0
        for part in parts:
            batch = self.collate(part)
            found = self.predict(model, dict(batch))
            loss += float(found.loss) * len(part)
            answers = batch["labels"][:, 1].to(found.logits.device)
            hits += int((found.logits[:, 0].argmax(-1) == answers).sum())
            asked += len(answers)
        return {"loss": loss / len(items), "accuracy": hits / asked}

    @torch.no_grad()
    def evaluate(self, model: Any, limit: int | None = None, progress: bool = True) -> dict[str, float]:
        """Exact match of the generated answer: overall, with an interval, on yes/no questions and on the others.

        Questions of equal length share a batch, so that none is padded: the stock `generate` lets the decoder attend
        to padding. Generation runs under bf16 autocast.
        """
        from torchmetrics import MeanMetric  # takes as much memory as a small model

        model.eval()
        rows = self._test.rows[:limit]
        alike: dict[int, list[tuple[int, str, str]]] = {}
        for row, ids in zip(rows, self.tokenizer([question for _, question, _ in rows])["input_ids"], strict=True):
            alike.setdefault(len(ids), []).append(row)
        size = self.batch_size
        batches = [rows[at : at + size] for _, rows in sorted(alike.items()) for at in range(0, len(rows), size)]
        metrics = {name: MeanMetric() for name in self.metrics}
        hits: list[float] = []
        for batch in track(batches, "evaluating", progress):
            for (_, _, expected), answer in zip(batch, self._answer(model, batch), strict=True):
                hit = float(answer == expected)
                hits.append(hit)
                metrics["accuracy"].update(hit)
                metrics["accuracy_yes_no" if expected in ("yes", "no") else "accuracy_other"].update(hit)
        found = {name: float(metric.compute()) for name, metric in metrics.items() if metric.update_count}
        return with_interval(mean_of(hits), lambda sums: {"accuracy": sums[..., 1] / sums[..., 0]}, "accuracy") | found

    def _answer(self, model: Any, rows: Sequence[tuple[int, str, str]]) -> list[str]:
        with torch.autocast(model.device.type, torch.bfloat16):
            inputs = for_model(self._inputs(self._test, rows), model)
            generated = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        return [text.strip() for text in self.tokenizer.batch_decode(generated, skip_special_tokens=True)]

    def sample(self, places: Sequence[int]) -> Batch:
        """Of the test questions."""
        rows = [self._test.rows[row % len(self._test.rows)] for row in places]
        return self._inputs(self._test, rows)

    def example(self, model: Any, batch_size: int) -> Callable[[], object]:
        inputs = for_model(self.sample(range(batch_size)), model)
        return lambda: model.generate(**inputs, max_new_tokens=1, do_sample=False)

    def save_processor(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        image_processor(self.image_size).save_pretrained(folder)
