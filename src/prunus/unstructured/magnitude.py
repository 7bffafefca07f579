"""Magnitude pruning: the smallest weights go. Shapes: R rows, C columns."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from prunus.unstructured.pruner import Scored
from prunus.unstructured.statistics import Statistics


class Magnitude(Scored):
    """Score |W|. Looks at no data, but inside a walk later blocks still see the pruned earlier ones."""

    method: Literal["magnitude"] = "magnitude"

    def scores(self, weight_RC: Tensor, known: Statistics) -> Tensor:
        return weight_RC.abs()
