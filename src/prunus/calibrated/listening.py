"""What a layer is given, call by call, while a block runs, or the first part of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn

from prunus.unstructured import EnoughError, Visit


class Listener:
    """Keeps what a layer is given."""

    def __init__(self) -> None:
        self._given: list[Tensor] = []
        self._enough: int | None = None

    def hear(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook."""
        self._given.append(args[0] if args else next(iter(kwargs.values())))
        if len(self._given) == self._enough:
            raise EnoughError

    def run(self, block: Callable[[], object], calls: int | None = None) -> list[Tensor]:
        """Runs a block, and returns what the layer was given.

        Args:
            calls: after so many calls of the layer the block is left, since nothing else of it is wanted.
        """
        self._given, self._enough = [], calls
        with suppress(EnoughError):
            block()
        return self.taken()

    @property
    def calls(self) -> int:
        """How often the layer has been called since the last time that somebody asked what it was given."""
        return len(self._given)

    def taken(self) -> list[Tensor]:
        """What the layer was given since the last time that somebody asked."""
        given, self._given, self._enough = self._given, [], None
        return given


class Countdown:
    """Leaves the run of a block for a batch once all consumers have been called as often as in an earlier run.

    Args:
        calls: batch → how often; others run to the end.
        listener: at the consumer that is not among the matrices which are heard.
    """

    def __init__(self, calls: Mapping[int, int], listener: Listener | None = None):
        self._calls, self._listener, self._heard = calls, listener, Counter[int]()

    def hear(self, visit: Visit) -> None:
        """A matrix was called."""
        self._heard[visit.batch] += 1
        others = 0 if self._listener is None else self._listener.calls
        if self._heard[visit.batch] + others == self._calls.get(visit.batch):
            raise EnoughError


@contextmanager
def listening(layer: nn.Module) -> Iterator[Listener]:
    """While the context is open, a listener is at the layer."""
    listener = Listener()
    handle = layer.register_forward_pre_hook(listener.hear, with_kwargs=True)
    try:
        yield listener
    finally:
        handle.remove()
