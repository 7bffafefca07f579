"""Gradient × gate: how much the loss moves when a channel begins to leave, from a few backward passes (UPop's score without training)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from prunus.calibrated.scores.score import Score
from prunus.errors import PrunusError
from prunus.unstructured import Statistics


class GradientTimesGate(Score):
    """Σ |ζ ∂L/∂ζ| over batches at ζ = 1, of the model's own loss; all units on one scale, attentions like MLPs.

    It depends on how the data are cut into batches.
    """

    score: Literal["gradient"] = "gradient"
    signed: bool = False
    """−Σ ζ ∂L/∂ζ instead, as UPop counts: where the loss falls as a channel shrinks, that one goes first."""

    def of_matrix(self, weight_RC: Tensor, columns_NF: Tensor, inputs: Statistics) -> Tensor:
        """Of no matrix alone.

        Raises:
            PrunusError: always.
        """
        raise PrunusError("score", self.score, "it is one of the whole model; ask narrow or score_channels for it")

    def of_gradient(self, gradient_N: Tensor) -> Tensor:
        """What one batch adds to the worth of a unit's channels, (N,), of ∂L/∂ζ."""
        return -gradient_N if self.signed else gradient_N.abs()
