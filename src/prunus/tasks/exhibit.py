"""What a model makes of single items, for people to look at."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL.Image import Image

from prunus.calibration import Item, evenly

SIDE = 224
"""Pixels of a picture's longer side at the most."""


@dataclass(frozen=True)
class Exhibit:
    """An item of the evaluation split, and what a model says of it."""

    said: str
    """By the model."""
    right: str
    """What would have been right."""
    asked: str = ""
    """The question; empty where the task is the same for every item."""
    pictures: Sequence[str] = field(default=())
    """JPEG files, small, base64."""


def some(rows: Sequence[Item], count: int) -> list[Item]:
    """So many rows at even distances, or all where there are fewer."""
    return evenly(rows, min(count, len(rows)))


def small_jpeg(picture: Image) -> str:
    """A picture as `Exhibit` holds it."""
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
