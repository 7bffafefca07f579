"""Rows of which some show the same picture, as one row a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets


class Pictures:
    """A row for each picture: the first that shows it, with the captions of all of them.

    Args:
        rows: with a column `captions`.
        groups: numbers of the rows of every picture.
    """

    def __init__(self, rows: datasets.Dataset, groups: Sequence[Sequence[int]]):
        self.rows, self.groups = rows, groups
        every: list[list[str]] = rows.select_columns(["captions"])[:]["captions"]
        self.captions = [[caption for row in group for caption in every[row]] for group in groups]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, key: int | str) -> Any:
        """A row by its number; or the column `captions`."""
        if isinstance(key, str):
            return {"captions": self.captions}[key]
        return {**self.rows[self.groups[key][0]], "captions": self.captions[key]}
