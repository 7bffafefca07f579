"""Exact scores by one backward pass per batch; each gradient is reduced to a number as soon as it is whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from prunus.allocation.allocator import Question
from prunus.anatomy import Matrix
from prunus.errors import PrunusError
from prunus.parallel import agreeing, summed
from prunus.progress import track
from prunus.unstructured import Take, give_gradients

STRIP = 1 << 12
"""Squares that are added up in one fp32 sum."""

Score = Literal["gradient_norm", "weight_gradient", "squared"]
Reduce = Callable[[Tensor, Tensor], Tensor]
"""(weight, gradient of one batch) → what it adds to the score."""

REDUCTIONS: dict[Score, Reduce] = {
    "gradient_norm": lambda weight, gradient: _norm(gradient),
    "weight_gradient": lambda weight, gradient: _dot(weight.abs(), gradient.abs()),
    "squared": lambda weight, gradient: _dot(weight.float().square(), gradient.float().square()),
}
"""Σ_b ‖g_b‖_F; Σ |w|·Σ_b |g_b|; Σ w²·Σ_b g_b². Means over batches differ from sums by a constant only. All depend on how
the data are cut into batches b: a norm of a mean gradient is not the mean of norms."""


def gradient_scores(question: Question, reduce: Reduce) -> dict[str, float]:
    """Σ over batches of `reduce(W, ∂L/∂W)` for every matrix, in float64; zero for one that the loss does not
    depend on.

    The model's weights are only read; what required gradients, or had some, does so again afterwards.

    Raises:
        PrunusError: weights are not in memory, the loss depends on nothing, or a gradient is not finite.
    """
    totals = {matrix.name: 0.0 for matrix in question.chosen}

    def take(matrix: Matrix, weight: Tensor, gradient: Tensor) -> None:
        totals[matrix.name] += float(reduce(weight, gradient))

    backward_each(question, take, "gradients · batches")
    totals = summed(totals)
    for name, total in totals.items():
        if not math.isfinite(total):
            raise PrunusError(
                "scores", f"{name}: {total}", "a gradient is not finite; look at the batches, or use fp32"
            )
    return totals


def backward_each(question: Question, take: Take, title: str) -> None:
    """One backward pass per batch of this process; each matrix gradient is given to `take`, and then freed.

    Raises:
        PrunusError: weights are not in memory, or the loss depends on nothing.
    """
    with agreeing():
        question.refuse_absent_weights()
        batches = track([batch for _, batch in question.own_batches], title, question.progress)
        give_gradients(question.model, question.chosen, map(question.scalar_loss, batches), take)


def _norm(gradient: Tensor) -> Tensor:
    """‖g‖_F as the norm of the norms of short strips: one fp32 sum over millions of squares would drift by percents."""
    wide, flat = torch.promote_types(gradient.dtype, torch.float32), gradient.flatten()
    whole = flat.numel() // STRIP * STRIP
    strips = torch.linalg.vector_norm(flat[:whole].view(-1, STRIP), dim=-1, dtype=wide)
    rest = torch.linalg.vector_norm(flat[whole:], dtype=wide)
    norm: Tensor = torch.linalg.vector_norm(torch.cat([strips, rest[None]]).double())
    return norm


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Σ left · right, row by row, in fp32."""
    rows: Tensor = torch.linalg.vecdot(left.float(), right.float())
    return rows.sum(dtype=torch.float64)
