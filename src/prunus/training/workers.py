"""Items that worker processes make, and errors that come back from there as themselves. Workers are forked, or begin anew and are handed what
they need (Windows, macOS, and Python 3.14)."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from prunus.errors import PrunusError
from prunus.extensions import load_extension, loaded_extensions

FAILED = "failed"
"""Key of a batch that could not be made."""


@dataclass(frozen=True)
class Failure:
    """What a worker could not make. torch would make a traceback of the error, in a text."""

    error: PrunusError


class Carried(Dataset[Any]):
    """A data set whose refusals are items."""

    def __init__(self, data: Any):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __reduce__(self) -> Any:
        return _handed, (Carried, loaded_extensions(), pickle.dumps(self.data))

    def __getitem__(self, index: int) -> Any:
        try:
            return self.data[index]
        except PrunusError as error:
            return Failure(error)


class Carrying:
    """A `collate` that makes a batch with a failure of what could not be made."""

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]]):
        self.collate = collate

    def __reduce__(self) -> Any:
        return _handed, (Carrying, loaded_extensions(), pickle.dumps(self.collate))

    def __call__(self, items: list[Any]) -> dict[str, Any]:
        failure = next((item for item in items if isinstance(item, Failure)), None)
        if failure is not None:
            return {FAILED: failure}
        try:
            return self.collate(items)
        except PrunusError as error:
            return {FAILED: Failure(error)}


def _handed(kind: Callable[[Any], Any], extensions: tuple[str, ...], content: bytes) -> Any:
    """What a worker makes of what it is handed, once it knows the classes of others."""
    for name in extensions:
        load_extension(name)
    return kind(pickle.loads(content))


def refuse_failed(batch: Mapping[str, Any]) -> None:
    """Raises what a worker could not.

    Raises:
        PrunusError: see above.
    """
    if isinstance(batch.get(FAILED), Failure):
        raise batch[FAILED].error
