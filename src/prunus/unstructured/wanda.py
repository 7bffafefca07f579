"""Wanda: weights times activations (Sun et al., "A Simple and Effective Pruning Approach for Large Language Models",
ICLR 2024). Shapes: R rows, C columns.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from prunus.unstructured.pruner import Scored
from prunus.unstructured.statistics import SquaredNorm, Statistics


class Wanda(Scored):
    """Score |W_ij| · ‖x_j‖₂ (equation 1 of the paper), compared within rows.

    `group="matrix"` is the variant published for ViTs: one threshold per matrix.
    """

    method: Literal["wanda"] = "wanda"

    needs = (SquaredNorm,)

    def scores(self, weight_RC: Tensor, known: Statistics) -> Tensor:
        return weight_RC.abs() * known[SquaredNorm].value.sqrt()
