"""What pruners know about the inputs of a linear layer, gathered over calibration batches in fp32.

Shapes: T tokens, C columns (inputs of the layer).
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
        self._variances_C = _zeros(device, columns) if Need.MOMENTS in needs else None
        self._gram_CC = _zeros(device, columns, columns) if Need.GRAM in needs else None

    def add(self, inputs_TC: Tensor, sequences: int) -> None:
        """Counts the inputs of one call: its tokens, which came from so many sequences.

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
        if self._sums_C is not None and self._variances_C is not None:
            self._sums_C += sums_C
            self._variances_C += (_variances(x_TC, sums_C / tokens) - self._variances_C) * (tokens / self.tokens)
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
        """Token-weighted mean of the variances within single calls (DSnoT)."""
        assert self._variances_C is not None
        return self._variances_C

    @property
    def gram_CC(self) -> Tensor:
        """H = 2/n Σ x xᵀ with n sequences (SparseGPT)."""
        assert self._gram_CC is not None
        H_CC: Tensor = self._gram_CC * (2 / max(self.sequences, 1))
        return H_CC


def _variances(x_TC: Tensor, mean_C: Tensor) -> Tensor:
    """Of every column around its mean, a strip of rows at a time, which stays in a core's cache."""
    total_C = torch.zeros_like(mean_C)
    rows = len(x_TC) if x_TC.is_cuda else max(1, STRIP // x_TC.shape[1])
    for part in torch.split(x_TC, rows):
        total_C += (part - mean_C).square_().sum(0)
    return total_C / len(x_TC)


def _zeros(device: torch.device | str, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32, device=device)
