"""From scores of matrices to weights that stay: groups, budgets per tower, and the solver."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from prunus.allocation.solver import share_out
from prunus.anatomy import Matrix, per_tower
from prunus.plan import part_of

Granularity = Literal["layer", "block", "tower"]
Aggregate = Literal["sum", "mean"]


def group_of(matrix: Matrix, granularity: Granularity) -> str:
    """The group that a matrix shares its sparsity with."""
    return {"layer": matrix.name, "block": matrix.block, "tower": matrix.tower}[granularity]


def budgets(
    chosen: Sequence[Matrix], sparsity: float | Mapping[str, float], each_tower: bool | None
) -> list[tuple[tuple[Matrix, ...], float]]:
    """The matrices that share one budget, with its sparsity: all of them, or (also by None) those of each tower.

    Raises:
        PrunusError: `sparsity` names a tower that is not there.
    """
    towers = tuple(dict.fromkeys(matrix.tower for matrix in chosen))
    if isinstance(sparsity, Mapping):
        targets = per_tower(sparsity, towers)
    elif each_tower is not False:
        targets = dict.fromkeys(towers, sparsity)
    else:
        return [(tuple(chosen), sparsity)]
    return [(tuple(m for m in chosen if m.tower == tower), target) for tower, target in targets.items()]


def kept_by_matrix(
    pool: Sequence[Matrix],
    scores: Mapping[str, float],
    keep: int,
    max_sparsity: float,
    granularity: Granularity,
    aggregate: Aggregate = "sum",
) -> dict[str, int]:
    """Weights that every matrix keeps; within a group all have the same sparsity, to rounding.

    Args:
        pool: matrices that share a budget.
        scores: of single matrices.
        keep: weights of all of them together that stay.
        aggregate: what a group's score is to its matrices' scores. `mean` is their sum per weight of the group, and shares
            out *weights*, not density, by it, as the published code does: a large group then gets less than with `sum`.
    """
    groups: dict[str, list[Matrix]] = {}
    for matrix in pool:
        groups.setdefault(group_of(matrix, granularity), []).append(matrix)
    sizes = {name: sum(matrix.weights for matrix in members) for name, members in groups.items()}
    totals = {name: sum(scores[matrix.name] for matrix in members) for name, members in groups.items()}
    if aggregate == "mean":
        totals = {name: total / sizes[name] for name, total in totals.items()}
    shares = share_out(sizes, totals, keep, max_sparsity)
    kept: dict[str, int] = {}
    for name, members in groups.items():
        weights = {matrix.name: matrix.weights for matrix in members}
        kept |= share_out(weights, {m: float(n) for m, n in weights.items()}, shares[name], max_sparsity=1.0)
    return kept


def weights_that_stay(pool: Iterable[Matrix], sparsity: float) -> int:
    """K = N − ⌊N·p⌋ of all weights of some matrices."""
    weights = sum(matrix.weights for matrix in pool)
    return weights - part_of(weights, sparsity)
