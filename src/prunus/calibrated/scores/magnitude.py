"""Weight magnitude: the baseline, which looks at no data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from prunus.anatomy import Unit
from prunus.calibrated.scores.score import Score, Seen
from prunus.structured import WeightMagnitude
from prunus.unstructured import Statistics


class ChannelMagnitude(Score):
    """√(Σ w²) over a channel's rows and biases in the producers and its columns in the consumer."""

    score: Literal["magnitude"] = "magnitude"

    def of(self, model: nn.Module, unit: Unit, seen: Sequence[Seen]) -> Tensor:
        return WeightMagnitude().evidence(model, unit, torch.ones((), device=seen[0].weight.device))

    def of_matrix(self, weight_RC: Tensor, columns_NF: Tensor, inputs: Statistics) -> Tensor:
        """Of the consumer alone."""
        return weight_RC.square().sum(0)[columns_NF].sum(1).sqrt()
