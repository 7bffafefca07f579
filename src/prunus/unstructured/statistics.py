"""What pruners know about the inputs of a linear layer, gathered over calibration batches in fp32.

Shapes: T tokens, C columns (inputs of the layer).
"""

from __future__ import annotations

from enum import Flag, auto

import torch
from torch import Tensor

from prunus.errors import PrunusError


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
        self.columns, self.needs = columns, needs
        self.sequences = 0
        self.tokens = 0
        zeros = {"dtype": torch.float32, "device": device}
        self._squares_C = torch.zeros(columns, **zeros) if Need.SQUARES in needs else None  # type: ignore[arg-type]
        self._sums_C = torch.zeros(columns, **zeros) if Need.MOMENTS in needs else None  # type: ignore[arg-type]
        self._variances_C = torch.zeros(columns, **zeros) if Need.MOMENTS in needs else None  # type: ignore[arg-type]
        self._gram_CC = torch.zeros(columns, columns, **zeros) if Need.GRAM in needs else None  # type: ignore[arg-type]

    def add(self, inputs_TC: Tensor, sequences: int) -> None:
        """Counts the inputs of one call: its tokens, which came from so many sequences.

        Raises:
            PrunusError: an input is not finite.
        """
        if self.needs is Need.NOTHING:
            return
        x_TC = inputs_TC.float()
        tokens = x_TC.shape[0]
        self.sequences += sequences
        self.tokens += tokens
        if self._gram_CC is not None:
            self._gram_CC.addmm_(x_TC.T, x_TC)
        probe = torch.zeros(())
        if self._squares_C is not None:
            probe = (x_TC * x_TC).sum(0)
            self._squares_C += probe
        if self._sums_C is not None and self._variances_C is not None:
            probe = x_TC.sum(0)
            self._sums_C += probe
            if tokens:
                self._variances_C += (x_TC.var(0, correction=0) - self._variances_C) * (tokens / self.tokens)
        if self._gram_CC is not None and self._squares_C is None:
            probe = x_TC.sum(0)
        if not torch.isfinite(probe).all():
            raise PrunusError("activations", "nan or infinity", "an input is not finite")

    @property
    def squares_C(self) -> Tensor:
        """‖x_j‖²: sum over tokens, mean over sequences (Wanda)."""
        assert self._squares_C is not None
        return self._squares_C / max(self.sequences, 1)

    @property
    def sums_C(self) -> Tensor:
        """Sum over tokens, mean over sequences (S in DSnoT)."""
        assert self._sums_C is not None
        return self._sums_C / max(self.sequences, 1)

    @property
    def variances_C(self) -> Tensor:
        """Token-weighted mean of the variances within single calls (DSnoT)."""
        assert self._variances_C is not None
        return self._variances_C

    @property
    def gram_CC(self) -> Tensor:
        """H = 2/n Σ x xᵀ with n sequences (SparseGPT)."""
        assert self._gram_CC is not None
        return self._gram_CC * (2 / max(self.sequences, 1))
