"""Real inputs of a model: of a task's items, or what the model's own processor makes of drawn pictures and questions about them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image, fromarray
from transformers import AutoConfig

from prunus.calibration import Batch
from prunus.checkpoint import understood
from prunus.errors import PrunusError, refusing
from prunus.tasks import Parted, Speaker, Task, kind_of

ORDERS = ((0, 1), (1, 0), (2, 0, 1))
"""Items of the batches: what is traced, other numbers of the same sizes, and other sizes."""
TEXTS = (
    "What is in the picture?",
    "How many circles are there, and of what colour is each?",
    "Is the ground that the circles lie on of the same colour from one side of the picture to the other?",
)
SIDE = 224
"""Pixels of a picture; processors make it as large as the model wants it."""


def real_batches(model: Any, folder: str | Path, task: Task | None = None) -> list[Batch]:
    """Batches to trace a model with, and to compare what was traced: two items, the same in the other order, and three.

    Args:
        folder: of the model, with its tokenizer and processor; or a hub id.
        task: takes its items; None draws pictures and asks about them.

    Raises:
        PrunusError: the folder has no tokenizer or processor for what the model takes, or the task is not one for it.
    """
    if task is not None:
        task = task.for_model(Path(folder))
        task.check()
        with refusing("task", task.name, f"its items are not for a {type(model).__name__}, so name another task"):
            return [task.sample(order) for order in ORDERS]
    with refusing(
        "task", None, f"nothing is known that makes inputs of a {type(model).__name__}; name a task with --task"
    ):
        return [_made(model, str(folder), order) for order in ORDERS]


def _made(model: Any, folder: str, order: tuple[int, ...]) -> Batch:
    texts, images = [TEXTS[item] for item in order], [picture(item) for item in order]
    takes = inspect.signature(model.forward).parameters
    sees, reads = "pixel_values" in takes, "input_ids" in takes
    if sees and reads:
        try:
            kind = kind_of(Speaker, folder)  # type: ignore[type-abstract]
        except PrunusError:
            pass
        else:
            return kind.batch(
                [[image] for image in images], [kind.prompt.replace("{question}", text) for text in texts]
            )
    parts = _Parts(folder)
    words = _words(parts, texts) if reads else {}
    pixels = dict(parts.pictures(images=images, return_tensors="pt")) if sees else {}
    made = {name: value for name, value in {**words, **pixels}.items() if name in takes}
    if not made:
        raise PrunusError("task", None, "it takes neither pictures nor tokens; name a task with --task")
    return made


def _words(parts: Parted, texts: list[str]) -> Batch:
    tokenizer = parts.words
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if getattr(parts.config, "is_encoder_decoder", False) or hasattr(parts.config, "vision_config"):
        return parts.tokens(texts)
    tokenizer.padding_side = "left"  # what comes next is appended
    return dict(tokenizer(texts, padding=True, return_tensors="pt"))


class _Parts(Parted):
    def __init__(self, folder: str):
        with understood(folder, doing="read the config"):
            self.config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        self.folder = self.source = folder


def picture(number: int) -> Image:
    """A picture of one circle or more on a ground that changes its colour from one side to the other."""
    across = np.linspace(0, 1, SIDE)
    y, x = np.meshgrid(across, across, indexing="ij")
    colours = np.stack([x, y, 1 - x], axis=-1) if number else np.stack([y, 1 - x, 0.5 + 0 * x], axis=-1)
    for circle in range(number + 1):
        inside = (x - 0.25 - 0.25 * circle) ** 2 + (y - 0.4) ** 2 < 0.01
        colours[inside] = (0.9, 0.2 + 0.3 * circle, 0.1)
    return fromarray((255 * colours).astype(np.uint8))
