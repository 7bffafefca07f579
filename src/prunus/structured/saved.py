"""The saved state of a search, read back."""

from __future__ import annotations

import json
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from prunus.errors import PrunusError
from prunus.structured.method import SearchMethod


def read_state(data: bytes, source: str) -> tuple[dict[str, Tensor], dict[str, Any], list[tuple[int, float, float]]]:
    """What `Search.state` returned: tensors by kind/unit, what they belong to, and the course."""
    try:
        tensors = load(data)
        about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        course = [(int(step), asked, achieved) for step, asked, achieved in tensors.pop("course").tolist()]
        read = {"steps_done": int(about["steps_done"]), "optimizer": json.loads(about.get("optimizer", "null"))}
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise PrunusError("search state", source, f"it is damaged ({error})") from None
    return tensors, about | read, course


def is_same(method: SearchMethod, written: object) -> bool:
    """Whether a method, as JSON, is `method`. Fields that it had not yet have their defaults; of what is selected,
    the units count and not the words."""
    words = {name: getattr(method, name) for name in ("include", "exclude")}
    try:
        return type(method).model_validate_json(str(written)).model_copy(update=words) == method
    except ValueError:
        return False
