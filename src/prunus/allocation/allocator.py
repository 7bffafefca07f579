"""What every allocation method is: a typed sparsity, and a rule for how many weights of which matrix stay."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import model_validator
from torch import Tensor, nn

from prunus.allocation.grouping import Aggregate, Granularity, budgets, kept_by_matrix
from prunus.anatomy import Matrix, choose, per_tower
from prunus.batches import bf16_autocast
from prunus.errors import PrunusError
from prunus.losses import Loss, own_loss
from prunus.parallel import is_ours
from prunus.plan import part_of
from prunus.refusals import refuse_weights, unusable
from prunus.typed import Share, Typed


@dataclass(frozen=True)
class Question:
    """What a method may look at: the model, the matrices, calibration batches and a loss."""

    model: nn.Module
    chosen: Sequence[Matrix]
    """The matrices that share the budget."""
    batches: Sequence[Any] = ()
    """Calibration data; methods that look at none are given none."""
    loss: Loss = own_loss
    """The training loss of the model on a batch."""
    bf16: bool = False
    """Whether the model is run under bf16 autocast."""
    progress: bool = False
    """Whether bars are shown."""

    @property
    def own_batches(self) -> list[tuple[int, Any]]:
        """Those that this process takes, with their numbers; alone, all of them."""
        return [(number, batch) for number, batch in enumerate(self.batches) if is_ours(number)]

    def autocast(self) -> torch.autocast:
        """For running the model; without the cache of cast weights, which would be half a second copy of it."""
        return bf16_autocast(self.model, self.bf16)

    def refuse_absent_weights(self) -> None:
        """For methods that look at weights or their gradients.

        Raises:
            PrunusError: a weight is offloaded, quantised or not finite.
        """
        for matrix in self.chosen:
            weight = matrix.view(self.model)
            if unusable(weight) is not None:
                raise PrunusError(
                    "weights", matrix.name, "it is offloaded or quantised; take ecoflap with order='zeroth', which only runs the model"
                )  # fmt: skip
        refuse_weights(self.model, self.chosen)

    def scalar_loss(self, batch: Any) -> Tensor:
        with self.autocast():
            return self.loss(self.model, batch)


@dataclass(frozen=True)
class Answer:
    """How many weights every matrix keeps; and the scores, if any, that say why."""

    kept: dict[str, int]
    """Matrix → weights that stay."""
    scores: dict[str, float] = field(default_factory=dict)
    """Matrix → what it was decided by."""


class Allocator(Typed):
    """Base of the allocation methods."""

    needs_batches: ClassVar[bool] = False
    """Whether the method looks at data."""
    by_batch: ClassVar[bool] = False
    """Whether it adds up over batches what is not linear in their losses, so that the same data in batches of another size
    are another answer."""
    needs_loss: ClassVar[bool] = False
    """Whether it computes the task's loss."""
    method: str
    """Its name in a recipe."""
    sparsity: Share | dict[str, Share] = 0.5
    """Share of the weights that go: of all of them together, or a fixed one per tower (towers that are not named are
    left out)."""

    def choose(
        self, candidates: Sequence[Matrix], include: Sequence[str], exclude: Sequence[str]
    ) -> tuple[Matrix, ...]:
        """The matrices that the sparsity is about."""
        if not isinstance(self.sparsity, Mapping):
            return choose(candidates, include, exclude)
        chosen = choose(candidates, include, exclude, self.sparsity)
        towers = per_tower(self.sparsity, tuple(dict.fromkeys(matrix.tower for matrix in chosen)))
        return tuple(matrix for matrix in chosen if matrix.tower in towers)

    def check(
        self, model: nn.Module, candidates: Sequence[Matrix], include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> tuple[Matrix, ...]:
        """The matrices that the sparsity is about; what is impossible is said, as far as that needs no data.

        Raises:
            PrunusError: a pattern or tower that is not there, or a sparsity out of reach.
        """
        chosen = self.choose(candidates, include, exclude)
        if not self.needs_batches:
            self.answer(Question(model, chosen))
        return chosen

    @abstractmethod
    def answer(self, question: Question) -> Answer:
        """Decides."""


class Scoring(Allocator):
    """An allocation by one score per matrix: measured once, good for every budget."""

    needs_batches = by_batch = needs_loss = True
    max_sparsity: Share | None = None
    """No group loses more than this share; None is 0.1 above the sparsity. At the sparsity itself, all is uniform."""
    per_tower: bool | None = None
    """Every tower has the given sparsity, and shares it out among its own groups. None means so, unless the groups are the
    towers themselves. Off: one budget for all towers, as published; then layers of one tower are compared with those of
    another, whose weights may have another scale."""
    granularity: Granularity = "block"
    """What has one sparsity: a matrix (`layer`), a transformer block, or a tower."""
    aggregate: Aggregate = "sum"
    """A group's score: the sum of its matrices', or that sum per weight."""

    @model_validator(mode="after")
    def _reachable(self) -> Scoring:
        targets = self.sparsity.values() if isinstance(self.sparsity, Mapping) else [self.sparsity]
        if self.max_sparsity is not None and self.max_sparsity < max(targets):
            raise PrunusError(
                "max_sparsity", self.max_sparsity, f"it is less than the sparsity {max(targets):.4g}; take at least that"
            )  # fmt: skip
        if self.granularity == "tower" and (self.per_tower or isinstance(self.sparsity, Mapping)):
            raise PrunusError(
                "granularity", "tower", "the sparsity of every tower is given already; take block or layer, or one sparsity for all"
            )  # fmt: skip
        return self

    @abstractmethod
    def measure(self, question: Question) -> dict[str, float]:
        """A score ≥ 0 for every matrix."""

    def kept(self, chosen: Sequence[Matrix], scores: Mapping[str, float]) -> dict[str, int]:
        """Weights that every matrix keeps, given the scores."""
        kept: dict[str, int] = {}
        each_tower = False if self.granularity == "tower" else self.per_tower
        for pool, sparsity in budgets(chosen, self.sparsity, each_tower):
            limit = min(1.0, sparsity + 0.1) if self.max_sparsity is None else self.max_sparsity
            keep = part_of(sum(m.weights for m in pool), 1 - sparsity)  # the published code rounds what stays
            kept |= kept_by_matrix(pool, scores, keep, limit, self.granularity, self.aggregate)
        return kept

    def answer(self, question: Question) -> Answer:
        scores = self.measure(question)
        return Answer(self.kept(question.chosen, scores), scores)
