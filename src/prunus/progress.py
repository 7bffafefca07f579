"""Progress bars for loops, on standard error: standard output may be read by another program."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

from prunus.parallel import is_first

T = TypeVar("T")


def track(items: Iterable[T], title: str, shown: bool = True, total: float | None = None) -> Iterable[T]:
    """The items, with a bar that is gone when they are; of several processes, the first shows it."""
    return rich_track(
        items, title, total, console=Console(stderr=True), transient=True, disable=not (shown and is_first())
    )
