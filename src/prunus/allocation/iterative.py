"""Global pruning in steps on a copy, of which only the ratios are kept (a first-order baseline of ECoFLaP)."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from prunus.allocation.allocator import Allocator, Answer, Question
from prunus.allocation.first_order import backward_each
from prunus.allocation.grouping import budgets
from prunus.anatomy import Matrix
from prunus.errors import PrunusError
from prunus.parallel import add_up
from prunus.plan import part_of


class IterativeGlobal(Allocator):
    """Prunes the lowest |w|·Σ_b|g_b| of the whole model in T steps to p_i = p^(T/i), and keeps the ratios.

    Works on a copy of the weights, with one score per weight in memory.
    """

    method: Literal["iterative_global"] = "iterative_global"
    needs_batches = by_batch = needs_loss = True
    rounds: int = Field(default=3, ge=1, le=10_000)
    """T."""
    per_tower: bool = False
    """Every tower has the given sparsity and is ranked by itself; off, the whole model is."""

    def answer(self, question: Question) -> Answer:
        question = replace(question, model=copy.deepcopy(question.model))
        weights = {m.name: m.view(question.model) for m in question.chosen}
        kept = {m.name: m.weights for m in question.chosen}
        for number in range(1, self.rounds + 1):
            scores = _weight_scores(question, f"global pruning {number}/{self.rounds}")
            for pool, sparsity in budgets(question.chosen, self.sparsity, self.per_tower):
                names = [matrix.name for matrix in pool]
                gone = part_of(sum(matrix.weights for matrix in pool), sparsity ** (self.rounds / number))
                for name, mask in zip(names, _lowest_of_all([scores[n] for n in names], gone), strict=True):
                    weights[name].masked_fill_(mask, 0)
                    kept[name] = int((~mask).sum())
        return Answer(kept)


def _weight_scores(question: Question, title: str) -> dict[str, Tensor]:
    """|w|·Σ_b|g_b| of every weight, fp32."""
    scores = {m.name: torch.zeros(m.rows, m.columns, device=m.view(question.model).device) for m in question.chosen}

    def take(matrix: Matrix, weight: Tensor, gradient: Tensor) -> None:
        scores[matrix.name] += gradient.abs()

    backward_each(question, take, title)
    add_up(list(scores.values()))
    for matrix in question.chosen:
        score = scores[matrix.name].mul_(matrix.view(question.model).abs())
        if not torch.isfinite(score).all():
            raise PrunusError("scores", matrix.name, "a gradient is not finite; look at the batches, or use fp32")
    return scores


def _lowest_of_all(scores: list[Tensor], count: int) -> list[Tensor]:
    """The `count` lowest scores of all tensors together, as a mask for each, on its device; ties go in order."""
    if count <= 0:
        return [torch.zeros_like(score, dtype=torch.bool) for score in scores]
    pooled = torch.cat([score.flatten().to(scores[0].device) for score in scores])
    threshold = float(pooled.kthvalue(count).values)
    del pooled
    masks = [score < threshold for score in scores]
    left = count - sum(int(mask.sum()) for mask in masks)
    for mask, score in zip(masks, scores, strict=True):
        ties = (score == threshold).flatten().nonzero().flatten()[:left]
        mask.view(-1)[ties] = True
        left -= len(ties)
    return masks
