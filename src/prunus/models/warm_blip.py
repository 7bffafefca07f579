"""The head start of a small BLIP on easy-VQA: its encoders learn what a question is about before they learn to answer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate
from transformers import BlipForQuestionAnswering

from prunus.data import COLORS, SHAPES, NamedImages, Questions, balanced
from prunus.models.packaged import WIDTH, small_blip, whiten
from prunus.training import Training, finetune

NAMING = 40
"""Steps after which an image encoder tells shapes and colours apart."""


def warm_blip(
    words: list[str],
    questions: Questions,
    collate: Callable[[Sequence[Any]], dict[str, Any]],
    matching_steps: int,
    **sizes: int,
) -> BlipForQuestionAnswering:
    """A `small_blip` whose encoders have had a head start (a minute on two cores): that of images has learned to tell
    shapes and colours apart, and that of questions to tell whether what is asked about is in the image.

    Without the first the model answers from the question alone for hundreds of steps; without the second it never
    learns which of eight colours a question asks about.

    Args:
        words: the vocabulary.
        questions: the training split.
        collate: makes a batch of its items, with answers [DEC] word [SEP] as `labels` (Q, 3).
        matching_steps: of the question encoder; the image encoder takes as many, at most 40.
        sizes: `vision_layers` and `text_layers`.

    Raises:
        PrunusError: a size is out of range, or a package is not installed.
    """
    model = small_blip(words, questions.image_size, **sizes)
    _head_start(
        _Namer(model.vision_model),
        NamedImages(questions),
        default_collate,
        min(NAMING, matching_steps),
        64,
        1e-4,
        "image encoder",
    )
    whiten(model.vision_model, questions.pixels(torch.arange(256)))
    model.vision_model.requires_grad_(False)
    matcher = _Matcher(model, [words.index(name) for name in (*SHAPES, *COLORS)], words.index("yes"))
    _head_start(matcher, balanced(questions), collate, matching_steps, 24, 2e-4, "question encoder")
    model.vision_model.requires_grad_(True)
    return model


def question_states(
    images: nn.Module, questions: nn.Module, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, image_of_question: Tensor
) -> Tensor:  # fmt: skip
    """States of questions about images, (Q, T, width), by BLIP's two encoders; an image is encoded once for all of its questions."""
    seen = images(pixel_values=pixel_values).last_hidden_state[image_of_question]
    states: Tensor = questions(
        input_ids=input_ids,
        attention_mask=attention_mask,
        encoder_hidden_states=seen,
        encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
    ).last_hidden_state
    return states


def _head_start(
    model: nn.Module, data: Dataset[Any], collate: Any, steps: int, batch_size: int, rate: float, title: str
) -> None:
    training = Training(
        steps=steps, batch_size=batch_size, learning_rate=rate, warmup_steps=min(10, steps), save_every=100 * steps
    )
    with tempfile.TemporaryDirectory() as folder:
        finetune(model, training, Path(folder), data, collate, lambda head, batch: head(**batch), title=title)


class _Namer(nn.Module):
    """An image encoder with a linear head on its mean patch token, for shape and colour."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(WIDTH, len(SHAPES) + len(COLORS))

    def forward(self, pixel_values: Tensor, shape: Tensor, color: Tensor) -> Tensor:
        logits = self.head(self.encoder(pixel_values=pixel_values).last_hidden_state[:, 1:].mean(1)).float()
        shapes, colors = logits.split([len(SHAPES), len(COLORS)], dim=1)
        return F.cross_entropy(shapes, shape) + F.cross_entropy(colors, color)


class _Matcher(nn.Module):
    """A question encoder with a linear head that says yes or no, as in BLIP's image-text matching.

    The head reads the state of the word that is asked about and the mean state, both standardised: what tells a match
    is a small part of either.
    """

    SHARPNESS = 15.0
    """Makes the head learn faster than the encoder at one learning rate."""

    def __init__(self, blip: BlipForQuestionAnswering, names: list[int], yes: int):
        super().__init__()
        self.images, self.questions, self.yes = blip.vision_model, blip.text_encoder, yes
        self.standardise = nn.BatchNorm1d(2 * WIDTH, affine=False, momentum=0.05)
        self.head = nn.Linear(2 * WIDTH, 1)
        nn.init.zeros_(self.head.weight)
        self.names: Tensor
        self.register_buffer("names", torch.tensor(names))

    def forward(self, labels: Tensor, input_ids: Tensor, attention_mask: Tensor, **images: Tensor) -> Tensor:
        states = question_states(self.images, self.questions, input_ids, attention_mask, **images).float()
        asked = torch.isin(input_ids, self.names).float().argmax(1)
        counted = attention_mask[..., None]
        mean = (states * counted).sum(1) / counted.sum(1)
        features = torch.cat([states[torch.arange(len(states), device=states.device), asked], mean], dim=1)
        logits = self.SHARPNESS * self.head(self.standardise(features)).float()[:, 0]
        return F.binary_cross_entropy_with_logits(logits, (labels[:, 1] == self.yes).float())
