"""In which order a model passes its blocks, which need not be that of their declaration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


class Order:
    """The order of blocks for every kind of batch, seen when one of that kind went through the model.

    Batches are of one kind if they hold inputs of the same names. One of each kind is held.
    """

    def __init__(self) -> None:
        self._kinds: dict[int, object] = {}
        self._examples: dict[object, Any] = {}
        self._seen: dict[object, dict[str, int]] = {}
        self._watched: dict[str, int] | None = None

    def note(self, number: int, batch: Any) -> None:
        """Says that a batch of that number sets off."""
        self._kinds[number] = kind = _kind(batch)
        self._examples.setdefault(kind, batch)

    def knows(self, number: int) -> bool:
        return self._kinds[number] in self._seen

    def example(self, number: int) -> Any:
        """A batch of the kind of this one."""
        return self._examples[self._kinds[number]]

    @contextmanager
    def watching(self, number: int) -> Iterator[None]:
        """While the context is open, the blocks that are passed are those of this batch's kind; nothing random is used up."""
        self._watched = self._seen[self._kinds[number]] = {}
        try:
            with torch.random.fork_rng(devices=[]):
                yield
        finally:
            self._watched = None

    def watches(self, path: str) -> bool:
        """Notes that a block is passed; whether anybody watches."""
        if self._watched is None:
            return False
        self._watched.setdefault(path, len(self._watched))
        return True

    def comes_to(self, number: int, block: str, later: str) -> bool:
        """Whether a batch that waits at a block is still to come to another one."""
        places = self._seen[self._kinds[number]]
        return later in places and places.get(block, len(places)) < places[later]


def _kind(batch: Any) -> object:
    if isinstance(batch, Mapping):
        return frozenset(str(name) for name, value in batch.items() if value is not None)
    return type(batch), len(batch) if isinstance(batch, list | tuple) else 0
