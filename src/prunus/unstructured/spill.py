"""Activations that nobody reads for the moment, moved out of the way and back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, UntypedStorage, nn
from torch.multiprocessing.reductions import StorageWeakRef

Place = Literal["keep", "cpu", "disk"]
SMALL = 1 << 16
"""Storages below this many bytes stay where they are."""


class Spill:
    """Empties the storages of tensors in place and fills them again, so whoever refers to the tensors need not know.

    The model's own storages are never touched.

    Args:
        model: whose parameters and buffers stay.
        place: `keep` does nothing; `cpu` frees the accelerator; `disk` frees the memory (files in a temporary folder,
            which the system may still hold in its cache).
    """

    def __init__(self, model: nn.Module, place: Place):
        self.place = place
        self._own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        self._away: dict[int, tuple[Any, StorageWeakRef]] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="prunus-activations-") if place == "disk" else None

    def put_away(self, *values: object) -> None:
        """Moves the tensors within these values away."""
        if self.place == "keep":
            return
        for storage in _storages(values):
            key, size = storage._cdata, storage.nbytes()
            if key in self._own or key in self._away or size < SMALL or not storage.resizable():
                continue
            if self._folder is not None:
                copy = UntypedStorage.from_file(str(Path(self._folder.name) / str(key)), True, size)
            elif storage.device.type == "cpu":
                continue
            else:
                copy = UntypedStorage(size, device="cpu")  # type: ignore[no-untyped-call]
            copy.copy_(storage, False)
            self._away[key] = (copy, StorageWeakRef(storage))  # type: ignore[no-untyped-call]
            storage.resize_(0)

    def keep_shared(self, one: object, other: object) -> None:
        """What two batches have in common, such as a cached table, is read while they wait: it stays."""
        if self.place != "keep":
            self._own |= {s._cdata for s in _storages([one])} & {s._cdata for s in _storages([other])}

    def bring_back(self, *values: object) -> None:
        """Makes the tensors within these values whole again."""
        for storage in _storages(values):
            if storage._cdata in self._away:
                _fill(storage, self._away.pop(storage._cdata)[0])

    def close(self) -> None:
        """Makes whole whatever is still in use, such as the caller's own tensors, and forgets the rest."""
        for copy, reference in self._away.values():
            if not reference.expired():  # type: ignore[no-untyped-call]
                _fill(UntypedStorage._new_with_weak_ptr(reference.cdata), copy)
        self._away.clear()
        if self._folder is not None:
            self._folder.cleanup()


def _fill(storage: UntypedStorage, copy: Any) -> None:
    storage.resize_(copy.nbytes())
    storage.copy_(copy, False)


def _storages(values: Iterable[object]) -> Iterator[UntypedStorage]:
    for tensor in _tensors(values):
        if tensor.device.type != "meta":
            yield tensor.untyped_storage()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
