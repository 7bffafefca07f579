"""What torch keeps for a whole thread: gradients, autocast, function modes. Batches that wait for one another within one thread
each have their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

FUNCTIONS: Any = torch.overrides
"""Holds a stack of what intercepts torch's functions, such as `with torch.device(…)`."""


@dataclass(frozen=True)
class Modes:
    """The modes of a moment."""

    grad: bool
    autocast: tuple[tuple[str, bool, torch.dtype], ...]
    autocast_cache: bool
    functions: tuple[Any, ...]

    @staticmethod
    def now() -> Modes:
        accelerator = torch.accelerator.current_accelerator()
        kinds = ("cpu",) if accelerator is None else ("cpu", accelerator.type)
        return Modes(
            torch.is_grad_enabled(),
            tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds),
            torch.is_autocast_cache_enabled(),
            tuple(FUNCTIONS._get_current_function_mode_stack()),
        )

    def enter(self) -> None:
        """Makes them the thread's."""
        torch._C._set_grad_enabled(self.grad)
        for kind, enabled, dtype in self.autocast:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)
        torch.set_autocast_cache_enabled(self.autocast_cache)
        if tuple(FUNCTIONS._get_current_function_mode_stack()) != self.functions:
            for _ in FUNCTIONS._get_current_function_mode_stack():
                FUNCTIONS._pop_mode()
            for mode in self.functions:
                FUNCTIONS._push_mode(mode)

    @contextmanager
    def active(self) -> Iterator[None]:
        """While the context is open, they are the thread's."""
        before = Modes.now()
        self.enter()
        try:
            yield
        finally:
            before.enter()

    @staticmethod
    def unchanged() -> Any:
        """A context that leaves the thread's modes as they were when it began, whatever is done to them in between."""
        return Modes.now().active()
