"""FLAP's score: how much a channel's contribution moves around its mean (An et al., AAAI 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from prunus.anatomy import Unit
from prunus.calibrated.scores.score import Score, Seen
from prunus.unstructured import Needs, SquaredNorm, Statistics, Sum


class Fluctuation(Score):
    """Σ Var(x_c) ‖W_:c‖² over the columns c of a channel, the variance over all tokens; as a z-score within its unit.

    A bias can make up for what does not move, so this goes with a compensation.
    """

    score: Literal["fluctuation"] = "fluctuation"
    needs: ClassVar[Needs] = (SquaredNorm, Sum)

    def of(self, model: nn.Module, unit: Unit, seen: Sequence[Seen]) -> Tensor:
        raw = super().of(model, unit, seen).double()
        spread = raw.std() if len(raw) > 1 else torch.zeros_like(raw.mean())
        return torch.zeros_like(raw).float() if spread == 0 else ((raw - raw.mean()) / spread).float()

    def of_matrix(self, weight_RC: Tensor, columns_NF: Tensor, inputs: Statistics) -> Tensor:
        squares, sums = inputs[SquaredNorm], inputs[Sum]
        mean_C = sums.total.double() / max(sums.tokens, 1)
        variance_C = (squares.total.double() / max(squares.tokens, 1) - mean_C.square()).clamp_min(0)
        return (variance_C * weight_RC.double().square().sum(0))[columns_NF].sum(1).float()
