"""OWL: outlier-weighed layer-wise sparsity (Yin et al., ICML 2024), for comparison.

A block's outlier share is that part of its Wanda scores |W_ij|·‖x_j‖ which is more than `outlier` times their mean, all
matrices of the block together, as the published code has it. Shares are stretched to [0, 2λ] over all blocks, and the
density of a block is 1 − p plus its distance from their mean, the mean being weighed by weights so that the total is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from prunus.allocation.allocator import Allocator, Answer, Question
from prunus.allocation.grouping import budgets, group_of, kept_by_matrix, weights_that_stay
from prunus.anatomy import Matrix, by_block
from prunus.errors import PrunusError
from prunus.losses import own_loss
from prunus.progress import track
from prunus.unstructured import Walk, Wanda, gather


class OWL(Allocator):
    """More density for blocks with more outliers."""

    method: Literal["owl"] = "owl"
    needs_batches = True
    outlier: float = Field(default=5.0, gt=1)
    """A score above this many times the mean of its group is an outlier (M in the paper)."""
    spread: float = Field(default=0.08, gt=0, lt=0.5)
    """λ: densities differ by at most 2λ."""
    granularity: Literal["block", "layer"] = "block"
    """What has one sparsity: a transformer block, or a matrix (`layer`)."""
    per_tower: bool | None = None
    """Every tower has the given sparsity, and shares it out among its own blocks; None means so. Off: one budget."""

    def answer(self, question: Question) -> Answer:
        outliers = self.outliers(question)
        return Answer(self.kept(question.chosen, outliers), outliers)

    def kept(self, chosen: Sequence[Matrix], outliers: Mapping[str, float]) -> dict[str, int]:
        """Weights that every matrix keeps, given the outliers of each."""
        kept: dict[str, int] = {}
        for pool, sparsity in budgets(chosen, self.sparsity, self.per_tower):
            kept |= self._share(pool, outliers, sparsity)
        return kept

    def outliers(self, question: Question) -> dict[str, float]:
        """Outliers of every matrix, a count.

        The model is run by the question's loss, or bare where that is the model's own.

        Raises:
            PrunusError: weights are not in memory.
        """
        method, model = Wanda(), question.model
        call = None if question.loss is own_loss else question.loss
        found: dict[str, float] = {}
        question.refuse_absent_weights()
        blocks = by_block(question.chosen)
        with (
            question.autocast(),
            Walk(model, question.batches, list(blocks), call, sequential=False, spread=True) as walk,
        ):
            for stop in track(walk, "outliers · blocks", question.progress, len(blocks)):
                statistics = gather(model, blocks[stop.block], method.needs, stop)
                groups: dict[str, dict[str, Tensor]] = {}
                for matrix in blocks[stop.block]:
                    if matrix.name not in statistics:  # an expert that no token was routed to
                        found[matrix.name] = 0.0
                        continue
                    scores = method.scores(matrix.view(model).float(), statistics[matrix.name])
                    groups.setdefault(group_of(matrix, self.granularity), {})[matrix.name] = scores
                for group in groups.values():
                    mean = sum(float(s.sum()) for s in group.values()) / sum(s.numel() for s in group.values())
                    found |= {name: float((scores > self.outlier * mean).sum()) for name, scores in group.items()}
        return found

    def _share(self, pool: Sequence[Matrix], outliers: Mapping[str, float], sparsity: float) -> dict[str, int]:
        groups: dict[str, list[Matrix]] = {}
        for matrix in pool:
            groups.setdefault(group_of(matrix, self.granularity), []).append(matrix)
        weights = {name: sum(m.weights for m in members) for name, members in groups.items()}
        shares = {name: sum(outliers[m.name] for m in members) / weights[name] for name, members in groups.items()}
        low, high = min(shares.values()), max(shares.values())
        if low == high:
            stretched = dict.fromkeys(shares, 0.0)
        else:
            stretched = {name: 2 * self.spread * (share - low) / (high - low) for name, share in shares.items()}
        mean = sum(stretched[name] * weights[name] for name in groups) / sum(weights.values())
        if sparsity + mean > 1 or sparsity + mean - 2 * self.spread < 0:
            raise PrunusError(
                "spread", self.spread, f"around a sparsity of {sparsity:.4g} some blocks would leave 0 to 1; take less"
            )
        # the same straight line as ECoFLaP's: floor 1 − (p + mean), slope 1, scores n_g · stretched share
        scores = {m.name: m.weights * stretched[group_of(m, self.granularity)] for m in pool}
        return kept_by_matrix(pool, scores, weights_that_stay(pool, sparsity), sparsity + mean, self.granularity)
