"""Which weights of one matrix go, given a score for each: exactly so many, within the right groups, without sorting.

Shapes: R rows (outputs), C columns (inputs).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prunus.errors import PrunusError

UNSTRUCTURED = "unstructured"
Group = Literal["row", "matrix"]


@dataclass(frozen=True)
class NofM:
    """n:m: of every m consecutive inputs of a row, n stay."""

    kept: int
    of: int

    @property
    def sparsity(self) -> float:
        return 1 - self.kept / self.of

    def holds(self, zeros_RC: Tensor) -> bool:
        """Whether every group of a matrix has its zeros; `zeros_RC` is true where a weight is zero."""
        if zeros_RC.shape[1] % self.of:
            return False
        return bool((zeros_RC.reshape(zeros_RC.shape[0], -1, self.of).sum(2) >= self.of - self.kept).all())


def parse_pattern(text: str) -> NofM | None:
    """`unstructured` is None, "2:4" keeps 2 of every 4.

    Raises:
        PrunusError: it is neither, or would keep all or nothing.
    """
    if text == UNSTRUCTURED:
        return None
    written = re.fullmatch(r"(\d+):(\d+)", text)
    if written is None or not 0 < int(written[1]) < int(written[2]):
        raise PrunusError(
            "pattern", text, "write unstructured, or n:m with 0 < n < m for n kept of every m, such as 2:4"
        )
    return NofM(int(written[1]), int(written[2]))


@dataclass(frozen=True)
class Quota:
    """How many weights of a matrix go, and among which they are compared."""

    pruned: int
    """Weights that go, in the whole matrix."""
    pattern: NofM | None = None
    group: Group = "row"
    """`row`: every row loses the same number (the remainder, if any, goes where the next score is lowest);
    `matrix`: the lowest scores of the whole matrix go."""
    zeros: Tensor | None = None
    """Weights that are zero already and stay so, bool (R, C): they go first, and all of them go."""

    def select(self, scores_RC: Tensor) -> Tensor:
        """The pruned positions, bool (R, C): exactly `pruned` of them, those with the lowest scores, unless more are zero
        already."""
        if self.zeros is None:
            return self._lowest(scores_RC)
        return self._lowest(scores_RC.masked_fill(self.zeros, -torch.inf)) | self.zeros

    def _lowest(self, scores_RC: Tensor) -> Tensor:
        rows, columns = scores_RC.shape
        if self.pattern is not None:
            return lowest_of_groups(scores_RC, self.pattern)
        if self.group == "matrix":
            return lowest(scores_RC.reshape(1, -1), self.pruned).view(rows, columns)
        each, left = divmod(self.pruned, rows)
        mask_RC = lowest(scores_RC, each)
        if left:
            next_R, column_R = scores_RC.masked_fill(mask_RC, torch.inf).min(dim=1)
            rows_left = lowest(next_R[None], left)[0].nonzero().flatten()
            mask_RC[rows_left, column_R[rows_left]] = True
        return mask_RC


def lowest(scores_RC: Tensor, count: int) -> Tensor:
    """The `count` lowest scores of every row, bool (R, C)."""
    mask_RC = torch.zeros_like(scores_RC, dtype=torch.bool)
    columns = scores_RC.shape[1]
    if count <= columns // 2:
        return mask_RC.scatter_(1, scores_RC.topk(count, dim=1, largest=False, sorted=False).indices, True)
    return ~mask_RC.scatter_(1, scores_RC.topk(columns - count, dim=1, sorted=False).indices, True)


def lowest_of_groups(scores_RC: Tensor, pattern: NofM) -> Tensor:
    """The m - n lowest scores of every m consecutive columns, bool (R, C)."""
    groups = scores_RC.reshape(-1, pattern.of)
    return lowest(groups, pattern.of - pattern.kept).view(scores_RC.shape)
