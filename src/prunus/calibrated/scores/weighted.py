"""The activation-weighted norm of the consumer's columns: Wanda's score (Sun et al., ICLR 2024), summed over a channel."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from prunus.calibrated.scores.score import Score
from prunus.unstructured import Needs, SquaredNorm, Statistics


class WeightedNorm(Score):
    """Σ |W_rc| ‖x_c‖ over the rows r of the consumer and the columns c of a channel."""

    score: Literal["weighted"] = "weighted"
    needs: ClassVar[Needs] = (SquaredNorm,)

    def of_matrix(self, weight_RC: Tensor, columns_NF: Tensor, inputs: Statistics) -> Tensor:
        return (weight_RC.abs().sum(0) * inputs[SquaredNorm].value.sqrt())[columns_NF].sum(1)
