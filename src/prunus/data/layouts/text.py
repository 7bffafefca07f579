"""Layout `text`: plain text files."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal

from prunus.data.source import Data, Found, given_path
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
        paths: list[Path] = []
        for pattern in [self.files] if isinstance(self.files, str) else self.files:
            found = [Path(name) for name in sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))]
            paths += [given_path("files", pattern)] if Path(pattern).exists() or not glob.has_magic(pattern) else found
        folder = next((path for path in paths if path.is_dir()), None)
        if not paths or folder is not None:
            raise PrunusError(
                "files",
                self.files,
                "name text files" if folder is None else f"{folder} is a folder; name the files in it",
            )
        return paths

    def inputs(self) -> list[Path]:
        return self._paths

    def rows(self) -> Iterator[Found]:
        for file in self._paths:
            try:
                text = file.read_text(encoding="utf-8")
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
