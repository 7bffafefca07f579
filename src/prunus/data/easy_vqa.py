"""easy-VQA: images of one shape in one colour, 64×64, and questions whose answer is one of 13 words.

The pip package `easy-vqa` (MIT) carries 4,000 training and 1,000 test images with 38,575 and 9,673 questions.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from prunus.errors import PrunusError
from prunus.progress import track

SHAPES = ["circle", "rectangle", "triangle"]
COLORS = ["black", "blue", "brown", "gray", "green", "red", "teal", "yellow"]
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What DINOv2 was trained with."""
LIMIT = 8
"""Repeats of a question at the most, for its answer's sake."""


def questions_of(split: Literal["train", "test"]) -> tuple[list[tuple[int, str, str]], dict[int, str]]:
    """Rows (image, question, answer) of a split, and paths of its images.

    Raises:
        PrunusError: the package of the data is not installed.
    """
    try:
        import easy_vqa
    except ImportError:
        raise PrunusError("task", "easy_vqa", "its data are not installed; run: pip install 'prunus[demo]'") from None
    questions, answers, images = getattr(easy_vqa, f"get_{split}_questions")()
    return list(zip(images, questions, answers, strict=True)), getattr(easy_vqa, f"get_{split}_image_paths")()


class Questions(Dataset[Any]):
    """A split. Item i is an image and `questions_per_item` of its questions and answers.

    An image's last item begins again with its first questions, so that all items are alike: CPU kernels are compiled
    per shape, and batches of ever-changing sizes ran at less than half the speed.
    """

    def __init__(self, split: Literal["train", "test"], image_size: int, questions_per_item: int):
        self.rows, self._paths = questions_of(split)
        self.image_size, self.questions_per_item = image_size, questions_per_item
        groups: dict[int, list[int]] = {}
        for row, (image, _, _) in enumerate(self.rows):
            groups.setdefault(image, []).append(row)
        self.items = [item for rows in groups.values() for item in self.grouped(rows)]
        """Rows of every item."""

    @property
    def words(self) -> list[str]:
        """Every word of the questions and answers, sorted."""
        asked = {word for _, question, _ in self.rows for word in question.rstrip("?").split()}
        return sorted(asked | {answer for _, _, answer in self.rows})

    @property
    def one_of_each(self) -> list[tuple[int, str, str]]:
        """A row of each image."""
        return list({row[0]: row for row in self.rows}.values())

    def grouped(self, rows: list[int]) -> list[list[int]]:
        """Rows of one image, cut into items of equal length."""
        step = self.questions_per_item
        return [[rows[(start + offset) % len(rows)] for offset in range(step)] for start in range(0, len(rows), step)]

    @cached_property
    def _images(self) -> Tensor:
        """Every image, resized: (images, 3, S, S), uint8."""
        size = (self.image_size, self.image_size)
        resized = torch.empty((max(self._paths) + 1, 3, *size), dtype=torch.uint8)
        for index, path in track(self._paths.items(), "reading images", total=len(self._paths)):
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))
            resized[index] = torch.from_numpy(pixels).permute(2, 0, 1)
        return resized

    def picture(self, index: int) -> Image.Image:
        """An image as it is stored."""
        with Image.open(self._paths[index]) as image:
            return image.convert("RGB")

    def pixels(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Normalised images, (len(indices), 3, S, S), fp32."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
        return (self._images[indices] / 255 - mean) / std

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, list[str], list[str]]:
        rows = [self.rows[number] for number in self.items[index]]
        image = self.pixels(torch.tensor([rows[0][0]]))[0]
        return image, [question for _, question, _ in rows], [answer for _, _, answer in rows]


class NamedImages(Dataset[Any]):
    """Training images with their shape and colour, as far as a question tells them; -100 where none does."""

    def __init__(self, questions: Questions):
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


def balanced(questions: Questions) -> Questions:
    """The yes/no questions, grouped by image too, repeated until for every wording both answers are about as frequent, and
    questions about shapes about as frequent as those about colours.
    """
    counts = Counter((question, answer) for _, question, answer in questions.rows)
    groups: dict[int, list[int]] = {}
    for row, (image, question, answer) in enumerate(questions.rows):
        if answer in ("yes", "no"):
            other = counts[question, "no" if answer == "yes" else "yes"]
            repeats = min(LIMIT, max(1, round(other / counts[question, answer])))
            if any(shape in question for shape in SHAPES):
                repeats *= 3
            groups.setdefault(image, []).extend([row] * repeats)
    shuffle = random.Random(0).shuffle
    chosen = copy.copy(questions)
    chosen.items = []
    for rows in groups.values():
        shuffle(rows)
        chosen.items += questions.grouped(rows)
    return chosen
