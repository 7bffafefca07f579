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
from prunus.unstructured import Gram, Needs, Statistics, inverse_factor


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
        return (costs_in_order(W_RC, U_CC.T @ U_CC, columns_NF, self.rounds) / output).float()


def costs_in_order(W_RC: Tensor, inverse_CC: Tensor, columns_NF: Tensor, rounds: int) -> Tensor:
    """The cost of every channel when it leaves, (N,). W and H⁻¹ are overwritten."""
    channels = len(columns_NF)
    costs_N, highest = W_RC.new_zeros(channels), W_RC.new_zeros(())
    left_L, size = torch.arange(channels, device=W_RC.device), -(-channels // rounds)
    while len(left_L):
        now_L = costs_now(W_RC, inverse_CC, columns_NF[left_L])
        order = now_L.argsort(stable=True)
        going = left_L[order[:size]]
        costs_N[going] = now_L[order[:size]].clamp_min(highest)
        highest = costs_N[going[-1]]
        gone_P = columns_NF[going].flatten()
        solved_PC = torch.linalg.solve(inverse_CC[gone_P][:, gone_P], inverse_CC[gone_P])
        W_RC -= W_RC[:, gone_P] @ solved_PC
        inverse_CC -= inverse_CC[:, gone_P] @ solved_PC
        left_L = left_L[order[size:].sort().values]
    return costs_N


def costs_now(W_RC: Tensor, inverse_CC: Tensor, columns_LF: Tensor) -> Tensor:
    """½ tr(W_F (H⁻¹_FF)⁻¹ W_Fᵀ) of every channel that is left, (L,)."""
    W_LFR = W_RC.T[columns_LF]
    inverse_LFF = inverse_CC[columns_LF[:, :, None], columns_LF[:, None, :]]
    solved_LFR: Tensor = torch.linalg.solve(inverse_LFF, W_LFR)
    return (W_LFR * solved_LFR).sum((1, 2)).clamp_min(0) / 2
