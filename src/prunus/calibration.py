"""Calibration batches from raw data: deterministic, and the same for every pruner of a study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from prunus.errors import PrunusError

Batch = dict[str, Any]
Item = TypeVar("Item")


CHARACTERS = 8
"""More than one token has, on average, of any text that a tokenizer was made for."""


def text_batches(tokenizer: Any, text: str, samples: int = 128, length: int = 512, batch_size: int = 4) -> list[Batch]:
    """Windows of one long text, spread evenly over it: `input_ids` (batch_size, length), without padding.

    A text of many times the length that is asked for is not tokenised as a whole: windows begin at words that are evenly far
    apart. Of a shorter one they are `spread(text_windows(…))`, which is also there for those who want that of any text.

    Args:
        tokenizer: of transformers, or anything that is called like one.
        samples: windows.
        length: tokens of a window.
        batch_size: windows of a batch.

    Raises:
        PrunusError: the text is too short.
    """
    if samples < 1 or length < 1 or batch_size < 1:
        raise PrunusError("samples", (samples, length, batch_size), "take at least one sample of one token in a batch")
    windows = _windows_of_words(tokenizer, text, samples, length)
    if windows is None:
        windows = spread(text_windows(tokenizer, text, length), samples)
    return [{"input_ids": ids} for ids in torch.split(windows, batch_size)]


def _windows_of_words(tokenizer: Any, text: str, samples: int, length: int) -> torch.Tensor | None:
    """Windows at evenly spaced words, (samples, length); None if that would read a good part of the text."""
    apart, enough = len(text) // samples, CHARACTERS * length
    if apart < 4 * enough:
        return None
    windows = []
    for sample in range(samples):
        start = sample * apart
        start += next((place for place, c in enumerate(text[start : start + enough]) if c.isspace()), 0) if start else 0
        tokens = text_tokens(tokenizer, text[start : start + enough])
        if len(tokens) <= length:  # the last token may be a part of one
            return None
        windows.append(tokens[:length])
    return torch.stack(windows)


def text_windows(tokenizer: Any, text: str, length: int) -> torch.Tensor:
    """A text as one document, without special tokens, cut into windows without overlap, (windows, length).

    Raises:
        PrunusError: the text is shorter than one window.
    """
    tokens = text_tokens(tokenizer, text)
    count = len(tokens) // length
    if not count:
        raise PrunusError(
            "length", length, f"the text has only {len(tokens)} tokens; give more text, or a smaller length"
        )
    return tokens[: count * length].view(count, length)


def text_tokens(tokenizer: Any, text: str) -> torch.Tensor:
    """A text as one document, without special tokens, (tokens,)."""
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def spread(rows: torch.Tensor, samples: int) -> torch.Tensor:
    """So many rows at even distances.

    Raises:
        PrunusError: there are fewer.
    """
    if not 0 < samples <= len(rows):
        raise PrunusError("samples", samples, f"there are {len(rows)}; take 1 to that many")
    return rows[torch.arange(samples) * len(rows) // samples]


def evenly(rows: Sequence[Item], samples: int) -> list[Item]:
    """As `spread`, of a list or what is indexed like one."""
    return [rows[place] for place in spread(torch.arange(len(rows)), samples).tolist()]


def pair_batches(processor: Any, images: Sequence[Any], texts: Sequence[str], batch_size: int = 8) -> list[Batch]:
    """Image-text pairs through a processor of transformers; texts are padded within a batch.

    Args:
        processor: of a vision-language model.
        images: PIL images or arrays, as the processor takes them.
        texts: one for each image.
        batch_size: pairs of a batch.

    Returns:
        Batches with what the processor makes, such as `pixel_values` (batch_size, 3, H, W) and `input_ids` (batch_size, T).

    Raises:
        PrunusError: not as many images as texts.
    """
    if len(images) != len(texts):
        raise PrunusError("texts", len(texts), f"give one text for each of the {len(images)} images")
    return [
        dict(processor(images=list(images[i : i + batch_size]), text=list(texts[i : i + batch_size]), return_tensors="pt", padding=True))
        for i in range(0, len(images), batch_size)
    ]  # fmt: skip


def image_batches(processor: Any, images: Sequence[Any], batch_size: int = 8) -> list[Batch]:
    """Images through an image processor of transformers.

    Args:
        processor: of a vision model.
        images: PIL images or arrays, as the processor takes them.
        batch_size: images of a batch.

    Returns:
        Batches with `pixel_values` (batch_size, 3, H, W).
    """
    return [
        dict(processor(images=list(images[i : i + batch_size]), return_tensors="pt"))
        for i in range(0, len(images), batch_size)
    ]
