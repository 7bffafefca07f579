"""The plain allocation: the same sparsity everywhere."""

from __future__ import annotations

from typing import Literal

from prunus.allocation.allocator import Allocator, Answer, Question
from prunus.allocation.grouping import budgets, kept_by_matrix, weights_that_stay


class Uniform(Allocator):
    """The same sparsity for every matrix, exact in total."""

    method: Literal["uniform"] = "uniform"

    def answer(self, question: Question) -> Answer:
        kept: dict[str, int] = {}
        for pool, sparsity in budgets(question.chosen, self.sparsity, each_tower=False):
            sizes = {matrix.name: float(matrix.weights) for matrix in pool}
            kept |= kept_by_matrix(pool, sizes, weights_that_stay(pool, sparsity), sparsity, "layer")
        return Answer(kept)
