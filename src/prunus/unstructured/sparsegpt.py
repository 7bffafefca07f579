"""SparseGPT: prune, and let the weights that stay make up for it (Frantar & Alistarh, ICML 2023).

Shapes: R rows, C columns, B columns of a block, S columns of a strip within a block.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from prunus.errors import PrunusError
from prunus.typed import Count
from prunus.unstructured.patterns import NofM, Quota, lowest, lowest_of_groups
from prunus.unstructured.pruner import Pruner
from prunus.unstructured.statistics import Gram, Statistics

STRIP = 16
"""Columns between two matrix products: a strip of all rows stays in the cache."""
DAMPING_TRIES = 4


class SparseGPT(Pruner):
    """Optimal-brain-surgeon pruning, column by column, with the updates batched per block of columns.

    Weights are compared across all rows of a block of `block_size` columns; n:m compares within its groups, when they
    are reached.
    """

    method: Literal["sparsegpt"] = "sparsegpt"
    block_size: Count = 128
    """Columns whose updates are batched, B in the paper."""
    damping: float = Field(default=0.01, gt=0, le=1e6)
    """Added to the diagonal of H, as a share of its mean."""

    needs = (Gram,)
    rounds_by_row = False

    def prune(self, weight_RC: Tensor, known: Statistics, quota: Quota) -> tuple[Tensor, Tensor]:
        H_CC = known[Gram].value
        dead_C = H_CC.diagonal() == 0  # inputs that are always zero: their weights do nothing
        U_CC = inverse_factor(H_CC, self.damping)
        W_CR = weight_RC.T.contiguous()  # columns become rows in memory, since the loop runs over columns
        W_CR[dead_C] = 0
        columns = weight_RC.shape[1]
        step = quota.pattern.of if quota.pattern else 1
        block, strip = _round_up(self.block_size, step), _round_up(STRIP, step)
        pruned_CR = torch.zeros_like(W_CR, dtype=torch.bool)
        zeros_CR = None if quota.zeros is None else quota.zeros.T
        done = 0
        for start in range(0, columns, block):
            stop = min(start + block, columns)
            zeros_BR = None if zeros_CR is None else zeros_CR[start:stop]
            due = quota.pruned * stop // columns - done
            if zeros_BR is not None:
                due = max(due, int(zeros_BR.sum()))
            errors_BR = _prune_block(
                W_CR[start:stop],
                U_CC[start:stop, start:stop],
                pruned_CR[start:stop],
                due,
                quota.pattern,
                strip,
                zeros_BR,
            )
            done += due
            W_CR[stop:].addmm_(U_CC[start:stop, stop:].T, errors_BR, alpha=-1)
        return W_CR.masked_fill_(pruned_CR, 0).T.contiguous(), pruned_CR.T.contiguous()


def _prune_block(
    W_BR: Tensor, U_BB: Tensor, pruned_BR: Tensor, count: int, pattern: NofM | None, strip: int, zeros_BR: Tensor | None
) -> Tensor:
    """Prunes a block in place, earlier zeros first; returns the errors (B, R) that the columns after it have to make up for."""
    diagonal_B = U_BB.diagonal()
    if pattern is None:
        scores_BR = (W_BR / diagonal_B[:, None]).square_()  # w² / [H⁻¹]_jj (equation 3 of the paper)
        if zeros_BR is not None:
            scores_BR.masked_fill_(zeros_BR, -1)
        pruned_BR.copy_(lowest(scores_BR.view(1, -1), count).view_as(W_BR))
    errors_BR = torch.empty_like(W_BR)
    for left in range(0, len(W_BR), strip):
        right = min(left + strip, len(W_BR))
        for j in range(left, right):
            if pattern is not None and j % pattern.of == 0:
                group = slice(j, j + pattern.of)
                scores_RM = (W_BR[group] / diagonal_B[group, None]).square_().T
                if zeros_BR is None:
                    pruned_BR[group] = lowest_of_groups(scores_RM.contiguous(), pattern).T
                else:
                    zeros_RM = zeros_BR[group].T
                    pruned_RM = lowest_of_groups(scores_RM.masked_fill(zeros_RM, -1).contiguous(), pattern)
                    pruned_BR[group] = (pruned_RM | zeros_RM).T
            torch.mul(W_BR[j], pruned_BR[j], out=errors_BR[j]).div_(diagonal_B[j])
            W_BR[j:right].addr_(U_BB[j, j:right], errors_BR[j], alpha=-1)
        W_BR[right:].addmm_(U_BB[left:right, right:].T, errors_BR[left:right], alpha=-1)
    return errors_BR


def inverse_factor(H_CC: Tensor, damping: float) -> Tensor:
    """The upper triangular U with UᵀU = (H + λI)⁻¹, λ = damping · mean(diag H); ten times more where that is singular.

    With J the reversal of rows and columns, JHJ = LLᵀ gives H = RRᵀ for the upper triangular R = JLJ, and U = R⁻¹: one
    factorisation and one triangular inverse, instead of factor, inverse, factor.

    Raises:
        PrunusError: H has no factor even with a thousand times the damping.
    """
    diagonal_C = H_CC.diagonal().clone()
    diagonal_C[diagonal_C == 0] = 1  # an input that is always zero
    reversed_CC = H_CC.flip(0, 1)
    for _ in range(DAMPING_TRIES):
        reversed_CC.diagonal().copy_((diagonal_C + damping * diagonal_C.mean()).flip(0))
        L_CC, failed = torch.linalg.cholesky_ex(reversed_CC)
        if not failed and bool(torch.isfinite(L_CC.diagonal()).all()):
            R_CC = L_CC.flip(0, 1)
            del reversed_CC, L_CC  # a wide layer's are hundreds of megabytes
            identity = torch.eye(len(H_CC), dtype=H_CC.dtype, device=H_CC.device)
            U_CC: Tensor = torch.linalg.solve_triangular(R_CC, identity, upper=True)
            return U_CC
        damping *= 10
    raise PrunusError(
        "damping", damping / 10, "the Gram matrix of its inputs is still singular; give more calibration data or more damping"
    )  # fmt: skip


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
