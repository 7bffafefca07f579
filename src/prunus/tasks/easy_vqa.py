"""Visual question answering on easy-VQA: 64×64 images of one shape, 13 answers.

The data come from the pip package `easy-vqa` (MIT): 4,000 training and 1,000 test images with 38,575 and 9,673
questions. The model is a `BlipForQuestionAnswering`, which generates the answer.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate
from torchmetrics import MeanMetric
from transformers import BertTokenizer, BlipForQuestionAnswering
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from prunus.batches import for_model
from prunus.calibration import Batch, spread
from prunus.errors import PrunusError
from prunus.losses import Prediction, next_tokens
from prunus.models import bare_blip, small_blip, whiten
from prunus.models.packaged import DEC, SEP, SPECIAL_TOKENS, WIDTH
from prunus.progress import track
from prunus.repair import Training, finetune
from prunus.typed import Count, Typed

IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What DINOv2 was trained with."""
SHAPES = ["circle", "rectangle", "triangle"]
COLORS = ["black", "blue", "brown", "gray", "green", "red", "teal", "yellow"]
MAX_TOKENS = 12
"""Tokens of the longest question."""


class EasyVQA(Typed):
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

    @property
    def headline(self) -> str:
        return "accuracy"

    def check(self) -> None:
        _easy_vqa()

    def check_model(self, folder: Path) -> None:
        """Models of this task are made for it."""

    def for_model(self, folder: Path) -> EasyVQA:
        return self

    @cached_property
    def words(self) -> list[str]:
        """The vocabulary: special tokens, then every word of the training questions and answers."""
        questions, answers, _ = _easy_vqa().get_train_questions()
        words = {word for question in questions for word in question.rstrip("?").split()} | set(answers)
        return [*SPECIAL_TOKENS, "?", *sorted(words)]

    @cached_property
    def tokenizer(self) -> Any:
        """Question tokens are [ENC] … [SEP], as BLIP expects."""
        vocabulary = {word: index for index, word in enumerate(self.words)}
        return BertTokenizer(
            vocab=vocabulary, cls_token="[ENC]", bos_token="[DEC]", additional_special_tokens=["[CLS]"]
        )

    @cached_property
    def image_processor(self) -> Any:
        size = {"height": self.image_size, "width": self.image_size}
        return BlipImageProcessorPil(size=size, image_mean=IMAGE_MEAN, image_std=IMAGE_STD)

    def skeleton(self, **sizes: int) -> BlipForQuestionAnswering:
        return bare_blip(self.words, self.image_size, **sizes)

    def warm_start(self, **sizes: int) -> BlipForQuestionAnswering:
        """A small BLIP whose encoders have had a head start (a minute on two cores): that of images has learned to tell
        shapes and colours apart, and that of questions to tell whether what is asked about is in the image.

        Without the first the model answers from the question alone for hundreds of steps; without the second it never
        learns which of eight colours a question asks about.
        """
        model = small_blip(self.words, self.image_size, **sizes)
        self._head_start(
            _Namer(model.vision_model), _NamedImages(self._train), default_collate, 40, 64, 1e-4, "image encoder"
        )
        whiten(model.vision_model, self._train.pixels(torch.arange(256)))
        model.vision_model.requires_grad_(False)
        matcher = _Matcher(model, [self.words.index(name) for name in (*SHAPES, *COLORS)], self.words.index("yes"))
        self._head_start(
            matcher, _BalancedQuestions(self._train), self.collate, self.matching_steps, 24, 2e-4, "question encoder"
        )
        model.vision_model.requires_grad_(True)
        return model

    @staticmethod
    def _head_start(
        model: nn.Module, data: Dataset[Any], collate: Any, steps: int, batch_size: int, rate: float, title: str
    ) -> None:
        training = Training(
            steps=steps, batch_size=batch_size, learning_rate=rate, warmup_steps=min(10, steps), save_every=100 * steps
        )
        with tempfile.TemporaryDirectory() as folder:
            finetune(model, training, Path(folder), data, collate, lambda head, batch: head(**batch), title=title)

    def train_data(self) -> Dataset[Any]:
        return self._train

    @cached_property
    def _train(self) -> _Questions:
        return _Questions(self, "train")

    @cached_property
    def _test(self) -> _Questions:
        return _Questions(self, "test")

    def collate(self, items: Sequence[tuple[Tensor, list[str], list[str]]]) -> Batch:
        """Images (I, 3, S, S); questions (Q, T) with `image_of_question` (Q,); answers [DEC] word [SEP] as (Q, 3)."""
        questions = [question for _, group, _ in items for question in group]
        answers = [answer for _, _, group in items for answer in group]
        tokens = self.tokenizer(questions, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt")
        index = {word: position for position, word in enumerate(self.words)}
        return {
            "pixel_values": torch.stack([image for image, _, _ in items]),
            "image_of_question": torch.repeat_interleave(torch.tensor([len(group) for _, group, _ in items])),
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "labels": torch.tensor([[DEC, index[answer], SEP] for answer in answers]),
        }

    def calibration(self, samples: int, batch_size: int) -> list[Batch]:
        """One question each of images spread evenly over the training split, with its answer for the decoder."""
        rows = {image: (question, answer) for image, question, answer in self._train.rows}
        chosen = spread(torch.tensor(list(rows)), samples).tolist()
        index = {word: position for position, word in enumerate(self.words)}
        batches = []
        for start in range(0, samples, batch_size):
            images = chosen[start : start + batch_size]
            tokens = self.tokenizer([rows[image][0] for image in images], padding=True, return_tensors="pt")
            batches.append(
                {
                    "pixel_values": self._train.pixels(torch.tensor(images)),
                    "input_ids": tokens["input_ids"],
                    "attention_mask": tokens["attention_mask"],
                    "decoder_input_ids": torch.tensor([[DEC, index[rows[image][1]]] for image in images]),
                }
            )
        return batches

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.predict(model, batch).loss

    def predict(self, model: nn.Module, batch: Batch) -> Prediction:
        """The model's own loss and the logits of its answers, with each image encoded once for all of its questions."""
        blip: Any = model
        batch = for_model(batch, model)
        images = blip.vision_model(pixel_values=batch["pixel_values"]).last_hidden_state[batch["image_of_question"]]
        states = blip.text_encoder(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            encoder_hidden_states=images,
            encoder_attention_mask=torch.ones(images.shape[:2], dtype=torch.long, device=images.device),
        ).last_hidden_state
        answer = blip.text_decoder(
            input_ids=batch["labels"],
            encoder_hidden_states=states,
            encoder_attention_mask=batch["attention_mask"],
            labels=batch["labels"],
        )
        return next_tokens(answer.loss, answer.logits, batch["labels"])

    @torch.no_grad()
    def evaluate(self, model: Any, limit: int | None = None, progress: bool = True) -> dict[str, float]:
        """Exact match of the generated answer: overall, on yes/no questions and on the others.

        Questions of equal length share a batch, so that none is padded: the stock `generate` lets the decoder attend
        to padding. Generation runs under bf16 autocast.
        """
        model.eval()
        data = self._test
        rows = data.rows[:limit]
        tokens = self.tokenizer([question for _, question, _ in rows])["input_ids"]
        order = sorted(range(len(rows)), key=lambda row: len(tokens[row]))
        batches: list[list[int]] = []
        for row in order:
            if not batches or len(batches[-1]) == self.batch_size or len(tokens[batches[-1][0]]) != len(tokens[row]):
                batches.append([])
            batches[-1].append(row)
        metrics = {name: MeanMetric() for name in ("accuracy", "accuracy_yes_no", "accuracy_other")}
        for batch in track(batches, "evaluating", progress):
            answers = self._answer(model, [rows[row][0] for row in batch], [tokens[row] for row in batch])
            for row, answer in zip(batch, answers, strict=True):
                expected = rows[row][2]
                hit = float(answer == expected)
                metrics["accuracy"].update(hit)
                metrics["accuracy_yes_no" if expected in ("yes", "no") else "accuracy_other"].update(hit)
        return {name: float(metric.compute()) for name, metric in metrics.items() if metric.update_count}

    def _answer(self, model: Any, images: list[int], tokens: list[list[int]]) -> list[str]:
        device = model.device
        pixels = self._test.pixels(torch.tensor(images)).to(device)
        ids = torch.tensor(tokens, device=device)
        with torch.autocast(device.type, torch.bfloat16):
            generated = model.generate(
                input_ids=ids,
                pixel_values=pixels,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=2,
                do_sample=False,
            )
        return [text.strip() for text in self.tokenizer.batch_decode(generated, skip_special_tokens=True)]

    def example(self, model: Any, batch_size: int) -> Callable[[], object]:
        rows = [self._test.rows[row % len(self._test.rows)] for row in range(batch_size)]
        tokens = self.tokenizer([question for _, question, _ in rows], padding=True, return_tensors="pt")
        inputs = {
            "input_ids": tokens["input_ids"].to(model.device),
            "attention_mask": tokens["attention_mask"].to(model.device),
            "pixel_values": self._test.pixels(torch.tensor([image for image, _, _ in rows])).to(model.device),
        }
        return lambda: model.generate(**inputs, max_new_tokens=1, do_sample=False)

    def save_processor(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)


class _NamedImages(Dataset[Any]):
    """Training images with their shape and colour, as far as a question tells them; -100 where none does."""

    def __init__(self, questions: _Questions):
        self._questions = questions
        named: dict[int, list[int]] = {}
        for image, _, answer in questions.rows:
            for place, names in enumerate((SHAPES, COLORS)):
                if answer in names:
                    named.setdefault(image, [-100, -100])[place] = names.index(answer)
        self._named = sorted(named.items())

    def __len__(self) -> int:
        return len(self._named)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, (shape, color) = self._named[index]
        return {"pixel_values": self._questions.pixels(torch.tensor([image]))[0], "shape": shape, "color": color}


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

    def forward(
        self, pixel_values: Tensor, image_of_question: Tensor, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
    ) -> Tensor:
        images = self.images(pixel_values=pixel_values).last_hidden_state[image_of_question]
        states = self.questions(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=images,
            encoder_attention_mask=torch.ones(images.shape[:2], dtype=torch.long, device=images.device),
        ).last_hidden_state.float()
        asked = torch.isin(input_ids, self.names).float().argmax(1)
        counted = attention_mask[..., None]
        mean = (states * counted).sum(1) / counted.sum(1)
        features = torch.cat([states[torch.arange(len(states), device=states.device), asked], mean], dim=1)
        logits = self.SHARPNESS * self.head(self.standardise(features)).float()[:, 0]
        return F.binary_cross_entropy_with_logits(logits, (labels[:, 1] == self.yes).float())


class _Questions(Dataset[Any]):
    """A split. Item i is an image and `questions_per_item` of its questions and answers.

    An image's last item begins again with its first questions, so that all items are alike: CPU kernels are compiled
    per shape, and batches of ever-changing sizes ran at less than half the speed.
    """

    def __init__(self, task: EasyVQA, split: Literal["train", "test"]):
        package = _easy_vqa()
        questions, answers, images = getattr(package, f"get_{split}_questions")()
        self.rows: list[tuple[int, str, str]] = list(zip(images, questions, answers, strict=True))
        self._paths: dict[int, str] = getattr(package, f"get_{split}_image_paths")()
        self._task = task
        groups: dict[int, list[int]] = {}
        for row, image in enumerate(images):
            groups.setdefault(image, []).append(row)
        self._items = [item for rows in groups.values() for item in self.grouped(rows)]

    def grouped(self, rows: list[int]) -> list[list[int]]:
        """Rows of one image, cut into items of equal length."""
        step = self._task.questions_per_item
        return [[rows[(start + offset) % len(rows)] for offset in range(step)] for start in range(0, len(rows), step)]

    @cached_property
    def _images(self) -> Tensor:
        """Every image, resized: (images, 3, S, S), uint8."""
        size = (self._task.image_size, self._task.image_size)
        resized = torch.empty((max(self._paths) + 1, 3, *size), dtype=torch.uint8)
        for index, path in track(self._paths.items(), "reading images", total=len(self._paths)):
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))
            resized[index] = torch.from_numpy(pixels).permute(2, 0, 1)
        return resized

    def pixels(self, indices: Tensor) -> Tensor:
        """Normalised images, (len(indices), 3, S, S), fp32."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
        return (self._images[indices] / 255 - mean) / std

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Tensor, list[str], list[str]]:
        return self.item(self._items[index])

    def item(self, numbers: list[int]) -> tuple[Tensor, list[str], list[str]]:
        """The image of these rows, their questions and their answers."""
        rows = [self.rows[number] for number in numbers]
        image = self.pixels(torch.tensor([rows[0][0]]))[0]
        return image, [question for _, question, _ in rows], [answer for _, _, answer in rows]


class _BalancedQuestions(Dataset[Any]):
    """The yes/no questions, grouped by image as in `_Questions`, repeated until for every wording both answers are
    about as frequent, and questions about shapes about as frequent as those about colours.
    """

    LIMIT = 8
    """Repeats of a question at the most, for its answer's sake."""

    def __init__(self, questions: _Questions):
        self._questions = questions
        counts = Counter((question, answer) for _, question, answer in questions.rows)
        groups: dict[int, list[int]] = {}
        for row, (image, question, answer) in enumerate(questions.rows):
            if answer in ("yes", "no"):
                other = counts[question, "no" if answer == "yes" else "yes"]
                repeats = min(self.LIMIT, max(1, round(other / counts[question, answer])))
                if any(shape in question for shape in SHAPES):
                    repeats *= 3
                groups.setdefault(image, []).extend([row] * repeats)
        shuffle = random.Random(0).shuffle
        self._items: list[list[int]] = []
        for rows in groups.values():
            shuffle(rows)
            self._items += questions.grouped(rows)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Tensor, list[str], list[str]]:
        return self._questions.item(self._items[index])


def _easy_vqa() -> Any:
    try:
        import easy_vqa
    except ImportError:
        raise PrunusError("task", "easy_vqa", "its data are not installed; run: pip install 'prunus[demo]'") from None
    return easy_vqa
