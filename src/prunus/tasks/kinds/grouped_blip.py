"""A BLIP of packaged towers that answers with one word: several questions of an image share a batch, and the image is encoded once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.batches import bf16_autocast, for_model
from prunus.calibration import Batch
from prunus.losses import Prediction, next_tokens
from prunus.models import DEC, SEP, image_processor, question_states, word_tokenizer

MAX_TOKENS = 12
"""Tokens of the longest question."""


class GroupedBlip:
    """How such a model takes images and words.

    Args:
        words: its vocabulary, special tokens first.
    """

    def __init__(self, words: Sequence[str]):
        self.words = words
        self._index = {word: place for place, word in enumerate(words)}

    @cached_property
    def tokenizer(self) -> Any:
        """That of the vocabulary."""
        return word_tokenizer(list(self.words))

    def batch(self, items: Sequence[tuple[Tensor, list[str], list[str]]]) -> Batch:
        """Of images with some questions each and their answers: `pixel_values` (I, 3, S, S); questions (Q, T) with `image_of_question` (Q,);
        answers [DEC] word [SEP] as (Q, 3).
        """
        questions = [question for _, group, _ in items for question in group]
        tokens = self.tokenizer(questions, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt")
        return {
            "pixel_values": torch.stack([image for image, _, _ in items]),
            "image_of_question": torch.repeat_interleave(torch.tensor([len(group) for _, group, _ in items])),
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "labels": torch.tensor([[DEC, self._index[answer], SEP] for _, _, group in items for answer in group]),
        }

    def asked(self, pixels: Tensor, questions: Sequence[str]) -> Batch:
        """One question an image, of pixels (I, 3, S, S)."""
        tokens = self.tokenizer(list(questions), padding=True, return_tensors="pt")
        return {"pixel_values": pixels, "input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}

    def begun(self, answers: Sequence[str]) -> Batch:
        """What the decoder reads of answers, `decoder_input_ids` (Q, 2): [DEC] word."""
        return {"decoder_input_ids": torch.tensor([[DEC, self._index[answer]] for answer in answers])}

    def alike(self, questions: Sequence[str], size: int) -> Iterator[list[int]]:
        """Numbers of up to `size` questions with equally many tokens, so that none is padded: the stock `generate` lets the decoder attend to
        padding.
        """
        groups: dict[int, list[int]] = {}
        for number, ids in enumerate(self.tokenizer(list(questions))["input_ids"]):
            groups.setdefault(len(ids), []).append(number)
        for _, group in sorted(groups.items()):
            yield from (group[start : start + size] for start in range(0, len(group), size))

    def predict(self, model: Any, batch: Batch) -> Prediction:
        """The model's own loss and the logits of its answers."""
        batch = for_model(batch, model)
        labels = batch.pop("labels")
        states = question_states(model.vision_model, model.text_encoder, **batch)
        answer = model.text_decoder(
            input_ids=labels,
            encoder_hidden_states=states,
            encoder_attention_mask=batch["attention_mask"],
            labels=labels,
        )
        return next_tokens(answer.loss, answer.logits, labels)

    @torch.no_grad()
    def generate(self, model: Any, asked: Batch) -> list[str]:
        """Answers, under bf16 autocast where the device has instructions for it."""
        with bf16_autocast(model, True, cached=True):
            generated = model.generate(**for_model(asked, model), max_new_tokens=2, do_sample=False)
        return [text.strip() for text in self.tokenizer.batch_decode(generated, skip_special_tokens=True)]

    @torch.no_grad()
    def judge(self, model: nn.Module, items: Sequence[Any], at_a_time: int) -> dict[str, float]:
        """The loss of items, and the share of questions of which the answer is the likeliest of all words."""
        loss, hits, asked = 0.0, 0, 0
        for part in (items[start : start + at_a_time] for start in range(0, len(items), at_a_time)):
            batch = self.batch(part)
            found = self.predict(model, dict(batch))
            loss += float(found.loss) * len(part)
            answers = batch["labels"][:, 1].to(found.logits.device)
            hits += int((found.logits[:, 0].argmax(-1) == answers).sum())
            asked += len(answers)
        return {"loss": loss / len(items), "accuracy": hits / asked}

    def save(self, folder: Path, image_size: int) -> None:
        """Puts beside a checkpoint what turns raw inputs into tensors."""
        self.tokenizer.save_pretrained(folder)
        image_processor(image_size).save_pretrained(folder)
