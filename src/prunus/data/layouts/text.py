"""Layout `text`: plain text files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal

from prunus.data.files import paths_of
from prunus.data.source import Data, Found
from prunus.errors import PrunusError


class TextFiles(Data):
    """Plain text files, each a row: a whole document, or one row a line."""

    layout: Literal["text"] = "text"
    files: str | list[str]
    """A file or a glob, or several."""
    lines: bool = False
    """Whether each line that is not empty is a row."""

    @cached_property
    def _paths(self) -> list[Path]:
        patterns = [self.files] if isinstance(self.files, str) else self.files
        paths = [path for pattern in patterns for path in paths_of("files", pattern)]
        folder = next((path for path in paths if path.is_dir()), None)
        if folder is not None or not paths:
            raise PrunusError("files", self.files, f"{folder or 'an empty list'} is no text file; name the files")
        return paths

    def inputs(self) -> list[Path]:
        return self._paths

    def rows(self) -> Iterator[Found]:
        for file in self._paths:
            try:
                text = file.read_text(encoding="utf-8-sig")
            except OSError as error:
                raise PrunusError("files", str(file), f"it cannot be read ({error.strerror})") from None
            except ValueError:
                raise PrunusError("files", str(file), "it is no text in UTF-8; give a plain text file") from None
            if not self.lines:
                yield Found(str(file), file.parent, {"text": text})
                continue
            for number, line in enumerate(text.splitlines(), start=1):
                if line.strip():
                    yield Found(f"{file}:{number}", file.parent, {"text": line})
