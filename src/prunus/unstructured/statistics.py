"""What pruners know about the inputs of a linear layer, gathered over calibration batches in fp32.

Shapes: N sequences, T tokens, C columns (inputs of the layer).
"""

from __future__ import annotations

from enum import Flag, auto

import torch
from torch import Tensor

from prunus.errors import PrunusError

STRIP = 1 << 16
"""Elements handled at a time on a CPU."""


class Need(Flag):
    """Which statistics a pruner reads."""

    NOTHING = 0
    SQUARES = auto()
    MOMENTS = auto()
    """Sums and variances."""
    GRAM = auto()


class InputStatistics:
    """Running statistics of one layer's inputs, each column over all tokens that are not padding."""

    def __init__(self, columns: int, needs: Need, device: torch.device | str = "cpu"):
        self.needs = needs
        self.sequences = 0
        self.tokens = 0
        self._squares_C = _zeros(device, columns) if Need.SQUARES in needs else None
        self._sums_C = _zeros(device, columns) if Need.MOMENTS in needs else None
        self._deviations_C = _zeros(device, columns) if Need.MOMENTS in needs else None
        self._gram_CC = _zeros(device, columns, columns) if Need.GRAM in needs else None

    def add(self, inputs_TC: Tensor, sequences: int, sequence_T: Tensor | None = None) -> None:
        """Counts the inputs of one call.

        Args:
            sequences: how many sequences the tokens came from.
            sequence_T: which of them each token belongs to, 0 to `sequences` - 1; None if they are equally long and in
                order.

        Raises:
            PrunusError: an input is not finite.
        """
        tokens = inputs_TC.shape[0]
        if self.needs is Need.NOTHING or not tokens:
            return
        x_TC = inputs_TC.float()
        sums_C = x_TC.sum(0)
        if not torch.isfinite(sums_C).all():
            raise PrunusError("activations", "nan or infinity", "an input is not finite")
        self.sequences += sequences
        self.tokens += tokens
        if self._squares_C is not None:
            self._squares_C += (x_TC * x_TC).sum(0)
        if self._sums_C is not None and self._deviations_C is not None:
            self._sums_C += sums_C
            if sequence_T is None:
                sequence_T = torch.arange(tokens, device=x_TC.device) * sequences // tokens
            self._deviations_C += _squared_deviations(x_TC, sequence_T, sequences)
        if self._gram_CC is not None:
            self._gram_CC.addmm_(x_TC.T, x_TC)

    @property
    def squares_C(self) -> Tensor:
        """‖x_j‖²: sum over tokens, mean over sequences (Wanda)."""
        assert self._squares_C is not None
        mean_C: Tensor = self._squares_C / max(self.sequences, 1)
        return mean_C

    @property
    def sums_C(self) -> Tensor:
        """Sum over tokens, mean over sequences (S in DSnoT)."""
        assert self._sums_C is not None
        mean_C: Tensor = self._sums_C / max(self.sequences, 1)
        return mean_C

    @property
    def variances_C(self) -> Tensor:
        """Token-weighted mean of the variances within single sequences (DSnoT, whose authors feed one sequence at a time)."""
        assert self._deviations_C is not None
        mean_C: Tensor = self._deviations_C / max(self.tokens, 1)
        return mean_C

    @property
    def gram_CC(self) -> Tensor:
        """H = 2/n Σ x xᵀ with n sequences (SparseGPT)."""
        assert self._gram_CC is not None
        H_CC: Tensor = self._gram_CC * (2 / max(self.sequences, 1))
        return H_CC


def _squared_deviations(x_TC: Tensor, sequence_T: Tensor, sequences: int) -> Tensor:
    """Σ (x − mean of its sequence)² of every column, a strip of rows at a time, which stays in a core's cache."""
    counts_N = torch.bincount(sequence_T, minlength=sequences).clamp_min(1)
    means_NC = x_TC.new_zeros(sequences, x_TC.shape[1]).index_add_(0, sequence_T, x_TC) / counts_N[:, None]
    total_C = torch.zeros_like(x_TC[0])
    rows = len(x_TC) if x_TC.is_cuda else max(1, STRIP // x_TC.shape[1])
    for part_TC, place_T in zip(torch.split(x_TC, rows), torch.split(sequence_T, rows), strict=True):
        total_C += (part_TC - means_NC[place_T]).square_().sum(0)
    return total_C


def _zeros(device: torch.device | str, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32, device=device)
