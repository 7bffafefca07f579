"""DSnoT: dynamic sparse no training, a mask repaired by swaps (Zhang et al., ICLR 2024).

Shapes: R rows, C columns, K candidates.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from prunus.unstructured.patterns import NofM, Quota
from prunus.unstructured.pruner import Pruner
from prunus.unstructured.sparsegpt import inverse_factor
from prunus.unstructured.statistics import InputStatistics, Need

SPARSEGPT_DAMPING = 0.01


class DSnoT(Pruner):
    """Starts from another pruner's mask and swaps weights in and out of it, row by row, until the expected change of
    the row's output is near zero. No weight that stays is changed.
    """

    method: Literal["dsnot"] = "dsnot"
    start: Literal["wanda", "magnitude", "sparsegpt"] = "wanda"
    """Whose scores make the first mask."""
    max_cycles: int = Field(default=50, ge=0)
    threshold: float = Field(default=0.1, ge=0)
    """A row is done when the expected change of its output is no larger."""
    variance_power: float = Field(default=1.0, ge=0)
    same_sign: bool = False
    """A row also stops before its expected change would change sign. n:m always does."""

    @property
    def needs(self) -> Need:  # type: ignore[override]
        needs = Need.SQUARES | Need.MOMENTS
        return needs | Need.GRAM if self.start == "sparsegpt" else needs

    def prune(self, weight_RC: Tensor, inputs: InputStatistics, quota: Quota) -> tuple[Tensor, Tensor]:
        wanda_RC = weight_RC.abs() * inputs.squares_C.sqrt()
        pruned_RC = quota.select(self._start_scores(weight_RC, wanda_RC, inputs))
        change_RC = weight_RC * inputs.sums_C  # D: what a weight adds to the row's expected output
        gain_RC = change_RC / inputs.variances_C.clamp_min(torch.finfo(torch.float32).tiny).pow(self.variance_power)
        if quota.pattern is None:
            self._swap(pruned_RC, change_RC, gain_RC, wanda_RC)
        else:
            self._swap_in_groups(pruned_RC, change_RC, gain_RC, wanda_RC, quota.pattern)
        return weight_RC.masked_fill_(pruned_RC, 0), pruned_RC

    def _start_scores(self, weight_RC: Tensor, wanda_RC: Tensor, inputs: InputStatistics) -> Tensor:
        if self.start == "wanda":
            return wanda_RC
        if self.start == "magnitude":
            return weight_RC.abs()
        return (weight_RC / inverse_factor(inputs.gram_CC, SPARSEGPT_DAMPING).diagonal()).square()

    def _swap(self, pruned_RC: Tensor, change_RC: Tensor, gain_RC: Tensor, wanda_RC: Tensor) -> None:
        """Grows the pruned weight with the most gain, prunes the kept one with the lowest Wanda score; both must move
        the row's error e toward zero. Works on the mask in place.
        """
        error_R = (change_RC * pruned_RC).sum(1)
        first_sign_R = error_R.sign()
        positive_RC = change_RC > 0
        # One list of candidates for e > 0 and one for e <= 0 ([0] and [1]), each in the order in which they are taken.
        grow = (
            _ranked(-gain_RC, pruned_RC & positive_RC, self.max_cycles),
            _ranked(gain_RC, pruned_RC & (change_RC < 0), self.max_cycles),
        )
        cut = (
            _ranked(wanda_RC, ~pruned_RC & (change_RC < 0), self.max_cycles),
            _ranked(wanda_RC, ~pruned_RC & positive_RC, self.max_cycles),
        )
        taken_2RP = torch.zeros(2, 2, len(error_R), dtype=torch.long, device=error_R.device)  # (grow/cut, side, R)
        active_R = torch.ones_like(error_R, dtype=torch.bool)
        every_R = torch.arange(len(error_R), device=error_R.device)
        for _ in range(self.max_cycles):
            sides = ((error_R <= 0).long(), (error_R < 0).long())
            picked = []
            for kind, (lists, side_R) in enumerate(zip((grow, cut), sides, strict=True)):
                position_R = taken_2RP[kind, side_R, every_R]
                columns_2RK = torch.stack([columns for columns, _ in lists])
                counts_2R = torch.stack([count for _, count in lists])
                active_R &= position_R < counts_2R[side_R, every_R]
                picked.append(columns_2RK[side_R, every_R, position_R.clamp_max(columns_2RK.shape[2] - 1)])
            grown_R, cut_R = picked
            after_R = error_R + change_RC[every_R, cut_R] - change_RC[every_R, grown_R]
            active_R &= error_R.abs() > self.threshold
            if self.same_sign:
                active_R &= after_R.sign() == first_sign_R
            if not active_R.any():
                return
            rows = every_R[active_R]
            pruned_RC[rows, grown_R[rows]], pruned_RC[rows, cut_R[rows]] = False, True
            for kind, side_R in enumerate(sides):
                taken_2RP[kind, side_R[rows], rows] += 1
            error_R = torch.where(active_R, after_R, error_R)

    def _swap_in_groups(
        self, pruned_RC: Tensor, change_RC: Tensor, gain_RC: Tensor, wanda_RC: Tensor, pattern: NofM
    ) -> None:
        """As `_swap`, but the weight that goes is the lowest-scored one kept in the grown weight's group of m."""
        error_R = (change_RC * pruned_RC).sum(1)
        first_sign_R = error_R.sign()
        grow = (
            _ranked(-gain_RC, pruned_RC & (change_RC > 0), self.max_cycles),
            _ranked(gain_RC, pruned_RC & (change_RC < 0), self.max_cycles),
        )
        columns_2RK = torch.stack([columns for columns, _ in grow])
        counts_2R = torch.stack([count for _, count in grow])
        score_RC = wanda_RC.masked_fill(pruned_RC, torch.inf)
        taken_2R = torch.zeros_like(counts_2R)
        active_R = torch.ones_like(error_R, dtype=torch.bool)
        every_R = torch.arange(len(error_R), device=error_R.device)
        members_M = torch.arange(pattern.of, device=error_R.device)
        for _ in range(self.max_cycles):
            side_R = (error_R <= 0).long()
            position_R = taken_2R[side_R, every_R]
            active_R &= position_R < counts_2R[side_R, every_R]
            grown_R = columns_2RK[side_R, every_R, position_R.clamp_max(columns_2RK.shape[2] - 1)]
            group_RM = (grown_R - grown_R % pattern.of)[:, None] + members_M
            lowest_R, member_R = score_RC.gather(1, group_RM).min(dim=1)
            cut_R = group_RM[every_R, member_R]
            after_R = error_R + change_RC[every_R, cut_R] - change_RC[every_R, grown_R]
            active_R &= lowest_R.isfinite() & (error_R.abs() > self.threshold) & (after_R.sign() == first_sign_R)
            if not active_R.any():
                return
            rows = every_R[active_R]
            pruned_RC[rows, grown_R[rows]], pruned_RC[rows, cut_R[rows]] = False, True
            score_RC[rows, cut_R[rows]] = torch.inf
            taken_2R[side_R[rows], rows] += 1
            error_R = torch.where(active_R, after_R, error_R)


def _ranked(keys_RC: Tensor, allowed_RC: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The columns with the lowest keys among the allowed ones, lowest first, (R, K); and how many of them count, (R,)."""
    keys_RC = keys_RC.masked_fill(~allowed_RC, torch.inf)
    width = max(1, min(limit, keys_RC.shape[1]))
    return keys_RC.topk(width, dim=1, largest=False).indices, allowed_RC.sum(1).clamp_max(width)
