"""What a layer is given, call by call, while a block runs, or the first part of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn


class Listener:
    """Keeps what a layer is given."""

    def __init__(self) -> None:
        self._given: list[Tensor] = []
        self._enough: int | None = None

    def hear(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook."""
        self._given.append(args[0] if args else next(iter(kwargs.values())))
        if len(self._given) == self._enough:
            raise _EnoughError

    def run(self, block: Callable[[], object], calls: int | None = None) -> list[Tensor]:
        """Runs a block, and returns what the layer was given.

        Args:
            calls: after so many calls of the layer the block is left, since nothing else of it is wanted.
        """
        self._given, self._enough = [], calls
        with suppress(_EnoughError):
            block()
        return self.taken()

    def taken(self) -> list[Tensor]:
        """What the layer was given since the last time that somebody asked."""
        given, self._given, self._enough = self._given, [], None
        return given


class _EnoughError(BaseException):
    """Leaves a block; no error that anybody handles."""


@contextmanager
def listening(layer: nn.Module) -> Iterator[Listener]:
    """While the context is open, a listener is at the layer."""
    listener = Listener()
    handle = layer.register_forward_pre_hook(listener.hear, with_kwargs=True)
    try:
        yield listener
    finally:
        handle.remove()
