"""What every pruner is: typed settings, the statistics it needs, and a rule for one matrix."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, model_validator
from torch import Tensor

from prunus.errors import PrunusError
from prunus.typed import Share, Typed
from prunus.unstructured.patterns import Group, NofM, Quota, parse_pattern
from prunus.unstructured.statistics import Needs, Statistics


def as_written(pattern: object) -> object:
    """YAML reads a bare 2:4 as 2 · 60 + 4; this reads it back."""
    return "{}:{}".format(*divmod(pattern, 60)) if isinstance(pattern, int) else pattern


class Pruner(Typed):
    """Base of the pruners.

    Sparsity is the share of weights that go: one for all matrices, or one per tower. An n:m pattern says it by itself.
    """

    needs: ClassVar[Needs] = ()
    """The statistics that `prune` reads, such as `(SquaredNorm,)`."""
    rounds_by_row: ClassVar[bool] = True
    """Whether a sparsity is rounded down row by row, or for the matrix as a whole."""
    method: str
    """Its name in a recipe."""
    sparsity: Share | dict[str, Share] | None = None
    """None is 0.5, or what the pattern says."""
    pattern: Annotated[str, BeforeValidator(as_written)] = "unstructured"
    """`unstructured`, or n:m, which keeps n of every m consecutive inputs: "2:4", "4:8"."""

    @model_validator(mode="after")
    def _one_budget(self) -> Pruner:
        pattern = parse_pattern(self.pattern)
        if pattern is not None and self.sparsity is not None:
            given = self.sparsity.values() if isinstance(self.sparsity, Mapping) else [self.sparsity]
            if any(abs(value - pattern.sparsity) > 1e-9 for value in given):
                raise PrunusError(
                    "sparsity", self.sparsity, f"{self.pattern} always prunes {pattern.sparsity:.4g}, everywhere alike; "
                    "leave sparsity out (name towers with include and exclude), or use pattern unstructured",
                )  # fmt: skip
        return self

    @property
    def nofm(self) -> NofM | None:
        return parse_pattern(self.pattern)

    @property
    def target(self) -> float | dict[str, float]:
        """The sparsity asked for, with its default."""
        if self.sparsity is not None:
            return self.sparsity
        return self.nofm.sparsity if self.nofm else 0.5

    def quota(self, pruned: int) -> Quota:
        """How `pruned` weights of a matrix are compared."""
        return Quota(pruned, self.nofm)

    @abstractmethod
    def prune(self, weight_RC: Tensor, known: Statistics, quota: Quota) -> tuple[Tensor, Tensor]:
        """Prunes one matrix.

        Args:
            weight_RC: (rows, columns), fp32; may be overwritten.
            known: the statistics of the matrix that `needs` names.
            quota: how many weights go.

        Returns:
            The new weight, zero where pruned, and the pruned positions, bool (rows, columns).
        """


class Scored(Pruner):
    """A pruner that scores every weight and takes the lowest, leaving the others as they are."""

    group: Group = "row"
    """Weights are compared within a row, or within the matrix. n:m compares within its groups."""

    @property
    def rounds_by_row(self) -> bool:  # type: ignore[override]
        return self.group == "row"

    def quota(self, pruned: int) -> Quota:
        return Quota(pruned, self.nofm, self.group)

    @abstractmethod
    def scores(self, weight_RC: Tensor, known: Statistics) -> Tensor:
        """How much each weight matters, (rows, columns)."""

    def prune(self, weight_RC: Tensor, known: Statistics, quota: Quota) -> tuple[Tensor, Tensor]:
        scores_RC = self.scores(weight_RC, known)
        if not isinstance(scores_RC, Tensor) or scores_RC.shape != weight_RC.shape or scores_RC.isnan().any():
            raise PrunusError(
                "method", self.method, f"its scores must be numbers, one for each weight of a {tuple(weight_RC.shape)}"
            )
        pruned_RC = quota.select(scores_RC)
        return weight_RC.masked_fill_(pruned_RC, 0), pruned_RC
