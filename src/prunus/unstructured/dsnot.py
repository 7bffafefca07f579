"""DSnoT: dynamic sparse no training, a mask repaired by swaps (Zhang et al., ICLR 2024).

Shapes: R rows, C columns, K candidates, M members of a group.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from prunus.typed import Factor
from prunus.unstructured.patterns import NofM, Quota
from prunus.unstructured.pruner import Pruner
from prunus.unstructured.sparsegpt import inverse_factor
from prunus.unstructured.statistics import Gram, Needs, SquaredNorm, Statistics, Sum, Variance

SPARSEGPT_DAMPING = 0.01


class DSnoT(Pruner):
    """Starts from another pruner's mask and swaps weights in and out of it, row by row, until the expected change of
    the row's output is near zero. No weight that stays is changed.
    """

    method: Literal["dsnot"] = "dsnot"
    start: Literal["wanda", "magnitude", "sparsegpt"] = "wanda"
    """Whose scores make the first mask; with n:m they also say which weight of a group goes for another."""
    max_cycles: int = Field(default=50, ge=0, le=1_000_000)
    """Swaps that a row makes at most."""
    threshold: Factor = 0.1
    """A row is done when the expected change of its output is no larger."""
    variance_power: float = Field(default=1.0, ge=0, le=100)
    """Exponent of the inputs' variance, by which the expected change is divided."""
    same_sign: bool = True
    """A row also stops before its expected change would change sign; n:m always does. Off is the authors' default, which
    overshoots on small models."""

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return (SquaredNorm, Sum, Variance) + (Gram,) * (self.start == "sparsegpt")

    def prune(self, weight_RC: Tensor, known: Statistics, quota: Quota) -> tuple[Tensor, Tensor]:
        wanda_RC = weight_RC.abs() * known[SquaredNorm].value.sqrt()
        start_RC = self._start_scores(weight_RC, wanda_RC, known)
        pruned_RC = quota.select(start_RC)
        change_RC = weight_RC * known[Sum].value  # D: what a weight adds to the row's expected output
        gain_RC = change_RC / known[Variance].value.clamp_min(torch.finfo(torch.float32).tiny).pow(self.variance_power)
        if quota.pattern is None:
            self._swap(pruned_RC, change_RC, gain_RC, wanda_RC)
        else:
            self._swap_in_groups(pruned_RC, change_RC, gain_RC, start_RC, quota.pattern)
        return weight_RC.masked_fill_(pruned_RC, 0), pruned_RC

    def _start_scores(self, weight_RC: Tensor, wanda_RC: Tensor, known: Statistics) -> Tensor:
        if self.start == "wanda":
            return wanda_RC
        if self.start == "magnitude":
            return weight_RC.abs()
        return (weight_RC / inverse_factor(known[Gram].value, SPARSEGPT_DAMPING).diagonal()).square()

    def _swap(self, pruned_RC: Tensor, change_RC: Tensor, gain_RC: Tensor, wanda_RC: Tensor) -> None:
        """Grows the pruned weight with the most gain, prunes the kept one with the lowest Wanda score; both must move
        the row's error e toward zero. Works on the mask in place.
        """
        grow = self._growable(pruned_RC, change_RC, gain_RC)
        cut = _Candidates(
            wanda_RC, ~pruned_RC & (change_RC < 0), wanda_RC, ~pruned_RC & (change_RC > 0), self.max_cycles
        )
        rows = _Rows((change_RC * pruned_RC).sum(1))
        for _ in range(self.max_cycles):
            grow_side_R, cut_side_R = rows.error_R <= 0, rows.error_R < 0
            grown_R, can_grow_R = grow.next(grow_side_R)
            cut_R, can_cut_R = cut.next(cut_side_R)
            after_R = rows.error_R + _at(change_RC, cut_R) - _at(change_RC, grown_R)
            possible_R = can_grow_R & can_cut_R & (rows.error_R.abs() > self.threshold)
            if self.same_sign:
                possible_R &= after_R.sign() == rows.first_sign_R
            moved_R = rows.move(possible_R, after_R)
            if not moved_R.any():
                return
            _exchange(pruned_RC, moved_R, grown_R, cut_R)
            grow.take(grow_side_R, moved_R)
            cut.take(cut_side_R, moved_R)

    def _swap_in_groups(
        self, pruned_RC: Tensor, change_RC: Tensor, gain_RC: Tensor, start_RC: Tensor, pattern: NofM
    ) -> None:
        """As `_swap`, but the weight that goes is the one kept in the grown weight's group of m that the start scores lowest."""
        grow = self._growable(pruned_RC, change_RC, gain_RC)
        score_RC = start_RC.masked_fill(pruned_RC, torch.inf)
        members_M = torch.arange(pattern.of, device=score_RC.device)
        rows = _Rows((change_RC * pruned_RC).sum(1))
        for _ in range(self.max_cycles):
            side_R = rows.error_R <= 0
            grown_R, can_grow_R = grow.next(side_R)
            group_RM = (grown_R - grown_R % pattern.of)[:, None] + members_M
            lowest_R, member_R = score_RC.gather(1, group_RM).min(dim=1)
            cut_R = _at(group_RM, member_R)
            after_R = rows.error_R + _at(change_RC, cut_R) - _at(change_RC, grown_R)
            possible_R = can_grow_R & lowest_R.isfinite() & (rows.error_R.abs() > self.threshold)
            moved_R = rows.move(possible_R & (after_R.sign() == rows.first_sign_R), after_R)
            if not moved_R.any():
                return
            _exchange(pruned_RC, moved_R, grown_R, cut_R)
            grow.take(side_R, moved_R)
            score_RC[moved_R, cut_R[moved_R]] = torch.inf

    def _growable(self, pruned_RC: Tensor, change_RC: Tensor, gain_RC: Tensor) -> _Candidates:
        positive_RC, negative_RC = pruned_RC & (change_RC > 0), pruned_RC & (change_RC < 0)
        return _Candidates(-gain_RC, positive_RC, gain_RC, negative_RC, self.max_cycles)


class _Candidates:
    """For each row two lists of columns, each in the order in which they are taken: side 0 and side 1."""

    def __init__(self, keys0_RC: Tensor, allowed0_RC: Tensor, keys1_RC: Tensor, allowed1_RC: Tensor, limit: int):
        width = min(limit, keys0_RC.shape[1])
        sides = ((keys0_RC, allowed0_RC), (keys1_RC, allowed1_RC))
        self._columns_2RK = torch.stack(
            [keys.masked_fill(~allowed, torch.inf).topk(width, dim=1, largest=False).indices for keys, allowed in sides]
        )
        self._counts_2R = torch.stack([allowed.sum(1).clamp_max(width) for _, allowed in sides])
        self._taken_2R = torch.zeros_like(self._counts_2R)
        self._rows_R = torch.arange(len(keys0_RC), device=keys0_RC.device)

    def next(self, second_R: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's next column, from side 1 where `second_R`; and whether there is one."""
        side_R = second_R.long()
        position_R = self._taken_2R[side_R, self._rows_R]
        column_R = self._columns_2RK[side_R, self._rows_R, position_R]
        return column_R, position_R < self._counts_2R[side_R, self._rows_R]

    def take(self, second_R: Tensor, moved_R: Tensor) -> None:
        """Passes on to the column after, in the rows that moved."""
        self._taken_2R[second_R.long(), self._rows_R] += moved_R.long()


class _Rows:
    """The error of every row, and which rows are still at work; a row that stops once never starts again."""

    def __init__(self, error_R: Tensor):
        self.error_R, self.first_sign_R = error_R, error_R.sign()
        self._active_R = torch.ones_like(error_R, dtype=torch.bool)

    def move(self, possible_R: Tensor, after_R: Tensor) -> Tensor:
        """Takes the new error where it is possible; returns the rows that moved."""
        self._active_R &= possible_R
        self.error_R = torch.where(self._active_R, after_R, self.error_R)
        return self._active_R


def _at(values_RC: Tensor, column_R: Tensor) -> Tensor:
    return values_RC.gather(1, column_R[:, None])[:, 0]


def _exchange(pruned_RC: Tensor, moved_R: Tensor, grown_R: Tensor, cut_R: Tensor) -> None:
    pruned_RC[moved_R, grown_R[moved_R]] = False
    pruned_RC[moved_R, cut_R[moved_R]] = True
