"""The safetensors files of a checkpoint folder, read and written one tensor at a time.

The safetensors library reads single tensors but writes whole files; here a tensor's bytes are replaced in place, which
keeps memory at one tensor. The format: eight bytes with the header's length, a JSON header with type, shape and place
of every tensor, the bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.errors import PrunusError

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class _Place:
    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class Shards:
    """All tensors of a checkpoint folder, by their name in the files.

    Raises:
        PrunusError: the folder has no safetensors weights, or a file is damaged; the error names it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = sorted(path.name for path in folder.glob("*.safetensors"))
        if not self.files:
            raise PrunusError(
                "model", str(folder), "the folder has no *.safetensors files; save the model with save_pretrained first"
            )
        self._places: dict[str, _Place] = {}
        for file in self.files:
            self._places.update(_read_header(folder / file))

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def names(self) -> tuple[str, ...]:
        return tuple(self._places)

    def read(self, name: str) -> Tensor:
        """A tensor, in memory of its own."""
        place = self._places[name]
        buffer = bytearray(place.stop - place.start)
        with open(self.folder / place.file, "rb") as file:
            file.seek(place.start)
            if file.readinto(buffer) != len(buffer):
                raise PrunusError(
                    "weights", str(self.folder / place.file), f"the file ends within {name}; save the model again"
                )
        if not buffer:
            return torch.empty(place.shape, dtype=place.dtype)
        return torch.frombuffer(buffer, dtype=place.dtype).view(place.shape)

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Replaces tensors in place, and returns when the disk has them.

        Raises:
            PrunusError: a type or shape differs from what the file holds.
        """
        by_file: dict[str, list[str]] = {}
        for name, tensor in tensors.items():
            place = self._places[name]
            if tensor.dtype != place.dtype or tuple(tensor.shape) != place.shape:
                raise PrunusError(
                    "weights",
                    name,
                    f"the file holds {place.dtype} {place.shape}, not {tensor.dtype} {tuple(tensor.shape)}",
                )
            by_file.setdefault(place.file, []).append(name)
        for path, names in by_file.items():
            with open(self.folder / path, "r+b") as file:
                for name in names:
                    file.seek(self._places[name].start)
                    file.write(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
                file.flush()
                os.fsync(file.fileno())


def _read_header(path: Path) -> dict[str, _Place]:
    damaged = PrunusError("weights", str(path), "the file is damaged; save the model again")
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length < path.stat().st_size:
                raise damaged
            header: dict[str, Any] = json.loads(file.read(length))
    except (OSError, ValueError):
        raise damaged from None
    header.pop("__metadata__", None)
    base = 8 + length
    places = {}
    for name, entry in header.items():
        if entry["dtype"] not in _TYPES:
            raise PrunusError(
                "weights",
                str(path),
                f"{name} is {entry['dtype']}, which cannot be pruned from disk; load the model and use prune",
            )
        start, stop = (base + offset for offset in entry["data_offsets"])
        if stop > path.stat().st_size:
            raise damaged
        places[name] = _Place(path.name, _TYPES[entry["dtype"]], tuple(entry["shape"]), start, stop)
    return places
