"""Plans of the unstructured road: how many weights of which matrix go."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from prunus.anatomy import Anatomy, Matrix, by_name, per_tower
from prunus.errors import PrunusError
from prunus.plan.file import PlanFile
from prunus.plan.history import Entry, Recorded


class MatrixPlan(BaseModel):
    """What goes of one matrix."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    rows: int = Field(gt=0, lt=1 << 40)
    """Outputs."""
    columns: int = Field(gt=0, lt=1 << 40)
    """Inputs."""
    pruned: int = Field(ge=0)
    """Weights that go; in a record, weights that are zero."""
    asked: int | None = Field(default=None, ge=0)
    """In a record: weights that were to go. Fewer than are zero where inputs were dead, or weights were zero before."""
    tower: str
    """The tower it is in."""
    block: str = ""
    """Path of its transformer block."""

    @model_validator(mode="after")
    def _valid(self) -> MatrixPlan:
        if self.pruned > self.weights:
            raise ValueError(f"pruned is more than the {self.weights} weights there are")
        return self

    @classmethod
    def of(cls, matrix: Matrix, pruned: int) -> MatrixPlan:
        """So many weights of a matrix go."""
        return cls(rows=matrix.rows, columns=matrix.columns, pruned=pruned, tower=matrix.tower, block=matrix.block)

    @property
    def weights(self) -> int:
        return self.rows * self.columns

    @property
    def sparsity(self) -> float:
        return self.pruned / self.weights


class DensePart(BaseModel):
    """A weight inside the blocks that no pruner takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    weights: int = Field(ge=0)
    """How many."""
    reason: str
    """Why no pruner takes them."""


class SparsityPlan(Recorded, PlanFile):
    """Pruned weights per matrix: the input of `prune`, and, with what was achieved, its record."""

    main = "prune"
    format: Literal["prunus.sparsity/2"] = "prunus.sparsity/2"
    model: str
    """Class of the model the plan was made for."""
    pattern: str = "unstructured"
    """`unstructured`, or n:m where all of them have it."""
    matrices: dict[str, MatrixPlan]
    """Path of a matrix → what goes of it."""
    candidates: int = Field(default=0, ge=0)
    """Prunable matrices of the model that the plan was made for, planned or left out; 0 where that is not known."""
    calibration: dict[str, Any] = Field(default_factory=dict)
    """What the pruner was shown; empty for a plan that has not been carried out."""
    left_dense: dict[str, DensePart] = Field(default_factory=dict)
    """In a record: what stays dense inside the blocks though nobody excluded it, and why."""
    block_weights: int = Field(default=0, ge=0)
    """In a record: all weights inside the blocks, taken, excluded or left dense; 0 where that is not known."""

    @property
    def sparsity(self) -> float:
        """Share of all the plan's weights that go."""
        return _sparsity(self.matrices.values())

    @property
    def coverage(self) -> float | None:
        """Share of all weights inside the blocks that is zero; None where their number is not known."""
        return sum(m.pruned for m in self.matrices.values()) / self.block_weights if self.block_weights else None

    @property
    def dense_shares(self) -> dict[str, float]:
        """Reason → share of all weights inside the blocks that is left dense for it, the largest first."""
        shares: dict[str, float] = {}
        for part in self.left_dense.values():
            shares[part.reason] = shares.get(part.reason, 0.0) + part.weights / max(self.block_weights, 1)
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    @property
    def towers(self) -> dict[str, float]:
        """Sparsity per tower."""
        names = dict.fromkeys(matrix.tower for matrix in self.matrices.values())
        return {name: _sparsity(m for m in self.matrices.values() if m.tower == name) for name in names}

    def after(self, earlier: SparsityPlan | None) -> SparsityPlan:
        """The record of a model that was pruned before: matrices that only the earlier pruning took on keep its entries."""
        before = {} if earlier is None else {n: m for n, m in earlier.matrices.items() if n not in self.matrices}
        if earlier is None or not before:
            return self
        pattern = self.pattern if self.pattern == earlier.pattern else "unstructured"
        return self.model_copy(update={
            "matrices": {**before, **self.matrices}, "pattern": pattern, "history": (*earlier.history, *self.history),
            "left_dense": {name: part for name, part in self.left_dense.items() if name not in before},
        })  # fmt: skip

    def with_zeros(self, zeros: Mapping[str, int]) -> SparsityPlan:
        """The record with so many zeros in its matrices; those that are not named are dropped."""
        matrices = {n: m.model_copy(update={"pruned": zeros[n]}) for n, m in self.matrices.items() if n in zeros}
        lost = any(zeros.get(name, 0) < matrix.pruned for name, matrix in self.matrices.items())
        return self.model_copy(update={"matrices": matrices, "pattern": "unstructured" if lost else self.pattern})

    def check(self, model: str, candidates: Sequence[Matrix]) -> None:
        """Refuses a plan that was made for another model, naming the first mismatch.

        Raises:
            PrunusError: a matrix is missing or has another shape, or the plan does not know all that the model has.
        """
        shapes = {matrix.name: (matrix.rows, matrix.columns) for matrix in candidates}
        for name, plan in self.matrices.items():
            where, shape = f"plan.matrices[{name}]", (plan.rows, plan.columns)
            if name not in shapes:
                raise PrunusError(where, shape, f"this {model} has no such matrix; the plan is for another model")
            if shapes[name] != shape:
                raise PrunusError(
                    where, shape, f"in this {model} the matrix is {shapes[name]}; the plan is for another model"
                )
        if self.candidates and self.candidates != len(candidates):
            unknown = next((name for name in shapes if name not in self.matrices), "")
            raise PrunusError(
                "plan.candidates", self.candidates, f"this {model} has {len(candidates)} prunable matrices, such as {unknown}; "
                "the plan is for another model",
            )  # fmt: skip

    def edit(self, sparsity: Mapping[str, float]) -> SparsityPlan:
        """The same plan with other sparsities for some towers, blocks or matrices (shell globs).

        Raises:
            PrunusError: a name matches nothing, or a sparsity is no share.
        """
        shares = written_sparsities(sparsity, {n: (m.tower, m.block, n) for n, m in self.matrices.items()})
        edited = {
            name: {"pruned": part_of(self.matrices[name].weights, share), "asked": None}
            for name, share in shares.items()
        }
        matrices = {n: m.model_copy(update=edited.get(n, {})) for n, m in self.matrices.items()}
        edit = Entry(step="edit", settings=dict(sparsity))
        return self.model_copy(update={"matrices": matrices, "history": (*self.history, edit)})

    def unit_ratios(self, anatomy: Anatomy) -> dict[str, float]:
        """The plan for the structured road: unit → share of its weights that the plan prunes, from 0 to 1.

        For `UPop(unit_ratios=...)`. Matrices outside of every unit are left out.
        """
        ratios: dict[str, float] = {}
        by_path: dict[str, list[MatrixPlan]] = {}
        for name, matrix in self.matrices.items():
            by_path.setdefault(name.partition("[")[0], []).append(matrix)
        for unit in anatomy:
            inside = [matrix for path in unit.linear_paths for matrix in by_path.get(path, ())]
            if inside:
                ratios[unit.name] = _sparsity(inside)
        return ratios

    def __str__(self) -> str:
        lines = [
            f"{self.model}: {self.sparsity:.2%} of {sum(m.weights for m in self.matrices.values()):,} weights in {len(self.matrices)} matrices, {self.pattern}"
        ]
        for tower, sparsity in self.towers.items():
            inside = [matrix.sparsity for matrix in self.matrices.values() if matrix.tower == tower]
            lines.append(
                f"  {tower:<12}{sparsity:8.2%}   {len(inside)} matrices, {min(inside):.2%} to {max(inside):.2%} each"
            )
        if self.coverage is not None:
            lines.append(f"  of all {self.block_weights:,} weights in the blocks: {self.coverage:.2%}")
        lines += [f"  left dense {share:8.2%}   {reason}" for reason, share in self.dense_shares.items()]
        return "\n".join(lines)


def uniform(
    model: str,
    chosen: Sequence[Matrix],
    sparsity: float | Mapping[str, float],
    pattern: str = "unstructured",
    by_row: bool = True,
) -> SparsityPlan:
    """The same sparsity for every matrix of a tower.

    Args:
        model: class name of the model.
        chosen: the matrices to prune.
        sparsity: one for all, or one per tower; towers that are not named are left out. `language` stands for the
            text towers of a model that has no tower of that name.
        by_row: ⌊columns · sparsity⌋ weights of each row go; otherwise ⌊weights · sparsity⌋ of the matrix.

    Raises:
        PrunusError: a tower is not one of the model's.
    """
    towers = dict.fromkeys(matrix.tower for matrix in chosen)
    shares = (
        dict.fromkeys(towers, sparsity) if isinstance(sparsity, float | int) else per_tower(sparsity, tuple(towers))
    )
    matrices = {
        matrix.name: MatrixPlan.of(matrix, _count(matrix, float(shares[matrix.tower]), by_row))
        for matrix in chosen
        if matrix.tower in shares
    }  # fmt: skip
    history = (Entry(step="allocation", method="uniform"),)
    return SparsityPlan(model=model, history=history, pattern=pattern, matrices=matrices)


def _count(matrix: Matrix, sparsity: float, by_row: bool) -> int:
    return matrix.rows * part_of(matrix.columns, sparsity) if by_row else part_of(matrix.weights, sparsity)


def part_of(count: int, share: float) -> int:
    """⌊count · share⌋, for the share that was written: 0.7 of 10 is 7 and 0.29 of 100 is 29. The one place where a share of
    weights becomes a number of them."""
    return math.floor(round(count * share, 6))


def written_sparsities(written: Mapping[str, float], labels: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Sparsities that somebody wrote for towers, components, blocks and matrices, one per matrix; the narrower name wins.

    Args:
        written: selector → sparsity. Of two that are equally narrow, the later one wins.
        labels: matrix → its labels, the tower first.

    Raises:
        PrunusError: a name matches nothing, or a sparsity is not between 0 and 1.
    """
    for pattern, sparsity in written.items():
        if not 0 <= sparsity <= 1:
            raise PrunusError(f"sparsity.{pattern}", sparsity, "it is a share; take 0 to 1")
    return by_name(written, labels)


def _sparsity(matrices: Iterable[MatrixPlan]) -> float:
    listed = list(matrices)
    return sum(m.pruned for m in listed) / max(sum(m.weights for m in listed), 1)
