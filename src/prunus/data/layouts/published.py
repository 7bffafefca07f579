"""What layouts of published data sets have in common: files of known names below a root folder."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from pydantic import model_validator

from prunus.data.source import Data, given_path
from prunus.errors import PrunusError

DEPTH = 3
"""Folders below the root in which files are looked for: people unpack archives in several ways."""


class Published(Data):
    """Base of the published layouts. `inputs` and `rows` are theirs."""

    splits: ClassVar[Sequence[str]] = ()
    """Names of the splits."""
    home: ClassVar[str] = ""
    """Where the files are to be had."""
    root: str
    """Folder of the data set."""
    split: str = "train"
    """Such as train or val."""

    @model_validator(mode="after")
    def _split_is_known(self) -> Published:
        if self.split not in self.splits:
            near = difflib.get_close_matches(self.split, self.splits, n=1)
            hint = f"did you mean {near[0]}? There are" if near else "there are"
            raise PrunusError("split", self.split, f"{hint} {', '.join(self.splits)}")
        return self

    @property
    def title(self) -> str:
        return f"{self.layout} [{self.split}] in {self.root}"

    @cached_property
    def place(self) -> Path:
        """The root folder."""
        place = given_path("root", self.root)
        if not place.is_dir():
            raise PrunusError("root", self.root, f"it is a file; name the folder of {self.layout}")
        return place

    def find(self, *names: str) -> Path:
        """The first of some files or folders that is there, directly below the root or a little deeper.

        Raises:
            PrunusError: none is.
        """
        for name in names:
            for depth in range(DEPTH):
                found = sorted(self.place.glob("*/" * depth + name))
                if found:
                    return found[0]
        raise self.lacking(*names)

    def lacking(self, *names: str) -> PrunusError:
        """Says that none of some files or folders is there, and where they are to be had."""
        said = f"no {' or '.join(names)} is below it, as the {self.split} split of {self.layout} has"
        return PrunusError("root", self.root, f"{said}; see {self.home}" if self.home else said)
