"""The safetensors files of a checkpoint, read and written one tensor at a time.

The safetensors library reads single tensors but writes whole files; here a tensor's bytes are replaced in place, which
keeps memory at one tensor. The format: eight bytes with the header's length, a JSON header with type, shape and place
of every tensor, the bytes.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.errors import PrunusError

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


@dataclass(frozen=True)
class Place:
    """Where a tensor is: its file, and from which byte to which."""

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class Shards:
    """All tensors of some files of a folder, by their name in the files.

    Args:
        folder: that of the files.
        files: their paths within it; a tensor that is in several counts where it is last.

    Raises:
        PrunusError: a file is absent, not readable or damaged; the error names it.
    """

    def __init__(self, folder: Path, files: Sequence[str]):
        self.folder, self.files = folder, tuple(files)
        self.places: dict[str, Place] = {}
        for file in self.files:
            self.places.update(_read_header(folder, file))

    def read(self, name: str, into: Tensor | None = None) -> Tensor:
        """A tensor.

        Args:
            into: a tensor in main memory, of the same type and size, to fill and return; by default, a new one.
        """
        place = self.places[name]
        tensor = torch.empty(place.shape, dtype=place.dtype) if into is None else into.detach()
        path = self.folder / place.file
        with _opened(path, "rb") as file:
            file.seek(place.start)
            with _memory(tensor) as memory:
                if file.readinto(memory) != place.stop - place.start:
                    raise PrunusError("weights", str(path), f"the file ends within {name}; save the model again")
        return tensor

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Replaces tensors in place, and returns when the disk has them. They are of the same shape, in any type that the
        file's holds exactly."""
        by_file: dict[str, list[str]] = {}
        for name in tensors:
            by_file.setdefault(self.places[name].file, []).append(name)
        for path, names in by_file.items():
            with open(self.folder / path, "r+b") as file:
                for name in names:
                    place = self.places[name]
                    file.seek(place.start)
                    with _memory(tensors[name].detach().to("cpu", place.dtype).contiguous()) as memory:
                        file.write(memory)
                file.flush()
                os.fsync(file.fileno())

    def copy(self, folder: Path, dtypes: Mapping[str, torch.dtype]) -> None:
        """Copies the files, with other types for some tensors."""
        for file in self.files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            changed = {name: d for name, d in dtypes.items() if self.places[name].file == file}
            if changed:
                self._rewrite(file, folder / file, changed)
            else:
                shutil.copyfile(self.folder / file, folder / file)

    def lay_out(self, folder: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> Shards:
        """Files of the same names, in another folder, with the same tensors in the same order, some in other types and shapes. What the
        tensors hold is not written yet.

        Args:
            tensors: type and shape of those that are others.
        """
        for file in self.files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            with open(folder / file, "wb") as out:
                header, size = self._header(file, tensors)
                out.write(header)
                out.truncate(len(header) + size)
        return Shards(folder, self.files)

    def _own(self, file: str) -> list[str]:
        """Names of a file's tensors, in its order."""
        return [name for _, name in sorted((p.start, name) for name, p in self.places.items() if p.file == file)]

    def _header(self, file: str, changed: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> tuple[bytes, int]:
        """What a file begins with, and how many bytes of tensors follow."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        stop = 0
        for name in self._own(file):
            place = self.places[name]
            dtype, shape = changed.get(name, (place.dtype, place.shape))
            start, stop = stop, stop + torch.Size(shape).numel() * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text, stop

    def _rewrite(self, file: str, path: Path, dtypes: Mapping[str, torch.dtype]) -> None:
        changed = {name: (dtype, self.places[name].shape) for name, dtype in dtypes.items()}
        with open(path, "wb") as out:
            out.write(self._header(file, changed)[0])
            for name in self._own(file):
                with _memory(self.read(name).to(dtypes.get(name, self.places[name].dtype))) as memory:
                    out.write(memory)
            out.flush()
            os.fsync(out.fileno())


@contextmanager
def _memory(tensor: Tensor) -> Iterator[Any]:
    """The bytes of a contiguous tensor in main memory. (A view by numpy would make its storage keep its size for ever.)"""
    size = tensor.numel() * tensor.itemsize
    yield (ctypes.c_ubyte * size).from_address(tensor.data_ptr()) if size else bytearray()


def _opened(path: Path, mode: str) -> Any:
    try:
        return open(path, mode)
    except PermissionError:
        raise PrunusError("weights", str(path), "the file is not readable; ask for the right to read it") from None
    except OSError as error:
        raise PrunusError("weights", str(path), f"the file cannot be opened: {error.strerror}") from None


def _read_header(folder: Path, name: str) -> dict[str, Place]:
    path = folder / name
    damaged = PrunusError("weights", str(path), "the file is damaged; save the model again")
    places = {}
    with _opened(path, "rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length < size:
            raise damaged
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for key, entry in header.items():
                dtype, shape = entry["dtype"], tuple(entry["shape"])
                if dtype not in _TYPES:
                    raise PrunusError(
                        "weights", str(path), f"{key} is {dtype}, which cannot be pruned from disk; "
                        "load the model and use prune",
                    )  # fmt: skip
                start, stop = (8 + length + offset for offset in entry["data_offsets"])
                if stop > size or stop - start != torch.Size(shape).numel() * _TYPES[dtype].itemsize:
                    raise damaged
                places[key] = Place(name, _TYPES[dtype], shape, start, stop)
        except PrunusError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError):
            raise damaged from None
    return places
