"""What tells states of a data set apart: its settings, the code of its layout, and the files that its rows come from."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunus.data.source import Data


BASE = "prunus.data.source"
"""Where the base of all layouts is written."""


def identity(data: Data, version: str) -> str:
    """A short text that changes with the settings of a data set, with the code of its layout, and with size and time of its files.

    Args:
        version: of the form in which rows are kept.
    """
    digest = hashlib.sha256(version.encode())
    for part in (_absolute(data.model_dump(mode="json")), *_code(type(data)), *map(file_state, data.inputs())):
        digest.update(json.dumps(part).encode() + b"\n")
    return digest.hexdigest()[:16]


def file_state(file: Path) -> list[Any]:
    """Place, size and time of a file or folder."""
    found = file.stat()
    return [str(file.resolve()), 0 if file.is_dir() else found.st_size, found.st_mtime_ns]


def _absolute(settings: Any) -> Any:
    """Settings, with names of files and folders that are there in full: from another folder the same name means another file."""
    if isinstance(settings, Mapping):
        return {name: _absolute(value) for name, value in settings.items()}
    if isinstance(settings, list):
        return [_absolute(value) for value in settings]
    try:
        there = isinstance(settings, str) and settings and Path(settings).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return settings
    return os.path.abspath(Path(settings).expanduser()) if there else settings


def _code(cls: type[Data]) -> Iterator[str]:
    """What a layout and those that it derives from are written as."""
    for one in takewhile(lambda base: base.__module__ != BASE, cls.__mro__):
        try:
            yield Path(inspect.getfile(one)).read_text(encoding="utf-8")
        except (OSError, TypeError, ValueError):  # of a class that was typed in: its functions
            yield from (_written(member) for name, member in sorted(vars(one).items()) if inspect.isfunction(member))


def _written(function: Any) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return str(_compiled(function.__code__))


def _compiled(code: CodeType) -> list[Any]:
    inside = [_compiled(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    return [code.co_code.hex(), code.co_names, inside]
