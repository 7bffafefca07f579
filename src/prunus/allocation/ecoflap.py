"""ECoFLaP: coarse-to-fine layer-wise pruning (Sung, Yoon, Bansal, ICLR 2024), its coarse stage.

1. A score per matrix from the model's own training loss, exactly by gradients, or from forward passes alone;
2. a score per group, the sum over its matrices;
3. every group keeps at least 1 − p_max of its weights, and the rest of the budget in proportion to its score.
The fine stage is any pruner that is given the resulting plan.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator

from prunus.allocation.allocator import Question, Scoring
from prunus.allocation.first_order import REDUCTIONS, Score, gradient_scores
from prunus.allocation.zeroth_order import loss_changes
from prunus.anatomy import Matrix
from prunus.errors import PrunusError
from prunus.refusals import unusable
from prunus.typed import Seed


class ECoFLaP(Scoring):
    """Sparsity by how much the loss depends on a group of weights."""

    method: Literal["ecoflap"] = "ecoflap"
    order: Literal["first", "zeroth"] = "first"
    """`first`: gradients, one backward pass per batch. `zeroth`: forward passes only, for models that are quantised or
    offloaded; its scores are estimates of the same."""
    score: Score = "gradient_norm"
    """Σ‖g‖ (the paper); `weight_gradient` Σ|w||g|; `squared` Σw²g². At zeroth order ĝ, ĝ·‖W‖₁ and ĝ²·‖W‖²."""
    draws: int = Field(default=1, ge=1, le=10_000)
    """Zeroth order: noises per matrix and batch."""
    together: int = Field(default=1, ge=1, le=10_000)
    """Zeroth order: noises that share a pass."""
    epsilon: float = Field(default=1e-2, gt=0, le=1e3)
    """Zeroth order: size of the noise relative to the weights."""
    seed: Seed = 0
    """Zeroth order: of the noise."""

    @model_validator(mode="after")
    def _orders(self) -> ECoFLaP:
        for field in ("draws", "together", "epsilon", "seed"):
            if (
                self.order == "first"
                and field in self.model_fields_set
                and getattr(self, field) != type(self).model_fields[field].default
            ):
                raise PrunusError(
                    field, getattr(self, field), "gradients are exact and need no noise; leave it out, or take order='zeroth'"
                )  # fmt: skip
        return self

    def measure(self, question: Question) -> dict[str, float]:
        if self.order == "first":
            return gradient_scores(question, REDUCTIONS[self.score])
        changes = loss_changes(question, self.draws, self.epsilon, self.seed, self.together)
        if self.score == "gradient_norm":
            return changes
        return {m.name: self._weighted(question, m, changes[m.name]) for m in question.chosen}

    def _weighted(self, question: Question, matrix: Matrix, change: float) -> float:
        weight = matrix.view(question.model)
        if unusable(weight) is not None:
            raise PrunusError(
                "score", self.score, f"it needs the weight of {matrix.name}, which is offloaded or quantised; take gradient_norm"
            )  # fmt: skip
        if self.score == "weight_gradient":
            return change * float(weight.abs().sum(dtype=torch.float32))
        return change**2 * float(weight.float().square().sum())
