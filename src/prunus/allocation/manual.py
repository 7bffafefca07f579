"""The allocation that somebody wrote down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from prunus.allocation.allocator import Allocator, Answer, Question
from prunus.anatomy import CONNECTOR, Matrix, choose
from prunus.plan import part_of, written_sparsities
from prunus.typed import Share


class Manual(Allocator):
    """Sparsities by hand, per tower, block or matrix; what is named more narrowly wins.

    Examples:
        >>> by_hand = Manual(sparsity={"vision": 0.3, "language": 0.6, "vision_model.encoder.layers.0": 0.0})
    """

    method: Literal["manual"] = "manual"
    sparsity: dict[str, Share] = Field(min_length=1)
    """Tower, path of a block, or path of a matrix (shell globs are fine) → its sparsity. What nothing names stays dense."""

    def choose(
        self, candidates: Sequence[Matrix], include: Sequence[str], exclude: Sequence[str]
    ) -> tuple[Matrix, ...]:
        return choose(candidates, include, exclude, [CONNECTOR])

    def answer(self, question: Question) -> Answer:
        shares = written_sparsities(self.sparsity, {m.name: m.labels for m in question.chosen})
        return Answer(
            {m.name: m.weights - part_of(m.weights, shares[m.name]) for m in question.chosen if m.name in shares}
        )
