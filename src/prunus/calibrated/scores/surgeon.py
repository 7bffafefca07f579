"""The optimal brain surgeon's cost of a channel (ZipLM, NeurIPS 2023; SlimGPT, NeurIPS 2024).

Shapes: R rows and C columns of the consumer, N channels, L of them that are left, F columns of a channel, P columns that leave together.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from prunus.calibrated.scores.score import Score
from prunus.typed import Count
from prunus.unstructured import PANEL, Gram, Needs, Statistics, inverse_factor, mirrored

ROOMY = 7 / 8
"""Columns of channels that left stay in the matrices until those of the others are no more than this share."""


class SurgeonCost(Score):
    """What the consumer's output loses with a channel once all other columns have made up for it, ½ tr(W_F (H⁻¹_FF)⁻¹ W_Fᵀ).

    Channels are taken off the cheapest first, in rounds; after each, the others' columns and H⁻¹ are those of the smaller
    layer. So of two channels that say the same, one is cheap and the other is not. A channel's cost is what it was when it
    went, and no less than that of those before it. It is counted as a share of the output, ½ tr(W H Wᵀ).
    """

    score: Literal["surgeon"] = "surgeon"
    needs: ClassVar[Needs] = (Gram,)
    damping: float = Field(default=0.01, gt=0, le=1e6)
    """Added to the diagonal of H, as a share of its mean."""
    rounds: Count = 64
    """In how many the channels leave; as many as there are channels is one at a time."""

    def of_matrix(self, weight_RC: Tensor, columns_NF: Tensor, inputs: Statistics) -> Tensor:
        H_CC = inputs[Gram].value
        U_CC, W_RC = inverse_factor(H_CC, self.damping).double(), weight_RC.double()  # rounds add up
        output = ((W_RC @ H_CC.double()) * W_RC).sum().clamp_min(torch.finfo(torch.float32).tiny) / 2
        inverse_CC, W_CR = inverse_of(U_CC), W_RC.T.contiguous()
        return (costs_in_order(W_CR, inverse_CC, columns_NF, self.rounds) / output).float()


def inverse_of(U_CC: Tensor) -> Tensor:
    """UᵀU of an upper triangular U, by panels without most of the zeros and of what lies below the diagonal."""
    inverse_CC = torch.zeros_like(U_CC)
    for start in range(0, len(U_CC), PANEL):
        panel = slice(start, start + PANEL)
        inverse_CC[panel, start:].addmm_(U_CC[: panel.stop, panel].T, U_CC[: panel.stop, start:])
    return mirrored(inverse_CC)


def costs_in_order(W_CR: Tensor, inverse_CC: Tensor, columns_NF: Tensor, rounds: int) -> Tensor:
    """The cost of every channel when it leaves, (N,). W and H⁻¹ are overwritten."""
    channels, columns_LF = len(columns_NF), columns_NF
    costs_N, highest = W_CR.new_zeros(channels), W_CR.new_zeros(())
    left_L, size = torch.arange(channels, device=W_CR.device), -(-channels // rounds)
    while len(left_L):
        now_L = costs_now(W_CR, inverse_CC, columns_LF)
        order = now_L.argsort(stable=True)
        going, staying = order[:size], order[size:].sort().values
        costs_N[left_L[going]] = now_L[going].clamp_min(highest)
        highest = costs_N[left_L[going[-1]]]
        gone_P = columns_LF[going].flatten()
        solved_PC = torch.linalg.solve(inverse_CC[gone_P][:, gone_P], inverse_CC[gone_P])
        W_CR.addmm_(solved_PC.T, W_CR[gone_P], alpha=-1)
        inverse_CC.addmm_(inverse_CC[:, gone_P], solved_PC, alpha=-1)
        left_L, columns_LF = left_L[staying], columns_LF[staying]
        if columns_LF.numel() <= ROOMY * len(W_CR):
            stay = columns_LF.flatten()
            W_CR, inverse_CC = W_CR[stay], inverse_CC[stay][:, stay]
            columns_LF = torch.arange(len(stay), device=stay.device).view_as(columns_LF)
    return costs_N


def costs_now(W_CR: Tensor, inverse_CC: Tensor, columns_LF: Tensor) -> Tensor:
    """½ tr((H⁻¹_FF)⁻¹ W_Fᵀ W_F) of every channel that is left, (L,)."""
    W_LFR = W_CR[columns_LF]
    inverse_LFF = inverse_CC[columns_LF[:, :, None], columns_LF[:, None, :]]
    solved_LFF: Tensor = torch.linalg.solve(inverse_LFF, W_LFR @ W_LFR.mT)
    return solved_LFF.diagonal(dim1=1, dim2=2).sum(1).clamp_min(0) / 2
