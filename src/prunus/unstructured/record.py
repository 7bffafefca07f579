"""The record of zeros that a model's config carries, and what its weights say."""

from __future__ import annotations

import logging

from torch import Tensor, nn

from prunus.anatomy import weight_of
from prunus.plan import MatrixPlan, SparsityPlan
from prunus.refusals import unusable

logger = logging.getLogger(__name__)
RECORD = "prunus_sparsity"
"""The entry of a config that holds the record."""


def note(model: nn.Module, achieved: SparsityPlan) -> None:
    """Puts the record into the config of a transformers model, beside what an earlier pruning did to other matrices."""
    config = getattr(model, "config", None)
    if config is not None:
        before = recorded_sparsity(model)
        earlier = None if before is None else _counted(model, named_here(model, before))
        setattr(config, RECORD, achieved.after(earlier).model_dump(mode="json"))


def recorded_sparsity(model: nn.Module) -> SparsityPlan | None:
    """The record as it is written in the config, whatever the weights say; None where there is none."""
    recorded = getattr(getattr(model, "config", None), RECORD, None)
    return None if recorded is None else SparsityPlan.parse(recorded, "config.json")


def sparsity_of(model: nn.Module) -> SparsityPlan | None:
    """The record of a model that was pruned by prunus, or loaded from what it saved, with the zeros that its weights hold now.

    Matrices go by the names that they have in this model, also where another class wrote the record. Where the weights
    differ from the record (they were trained or merged since, or belong to another model of the same config), a warning is
    logged. Weights that are not in memory or are quantised count as recorded.

    Returns:
        None where nothing is recorded, or none of it is true of these weights.
    """
    record = recorded_sparsity(model)
    if record is None:
        return None
    record = named_here(model, record)
    counted = _counted(model, record)
    wrong = [name for name, matrix in counted.matrices.items() if record.matrices[name].pruned != matrix.pruned]
    if wrong:
        logger.warning(
            "the record in the config of this %s is not what its weights say: %d of %d matrices differ, such as %s (recorded %d "
            "zeros, there %d); what is there counts",
            type(model).__name__, len(wrong), len(record.matrices), wrong[0],
            record.matrices[wrong[0]].pruned, counted.matrices[wrong[0]].pruned,
        )  # fmt: skip
    return counted if any(matrix.pruned for matrix in counted.matrices.values()) else None


def _counted(model: nn.Module, record: SparsityPlan) -> SparsityPlan:
    return record.with_zeros({n: zeros_in(weight_of(model, n), m.pruned) for n, m in record.matrices.items()})


def zeros_in(weight: Tensor, recorded: int) -> int:
    """How many weights are zero; as recorded, where that cannot be counted."""
    return int((weight == 0).sum()) if unusable(weight) is None else recorded


def named_here(model: nn.Module, record: SparsityPlan) -> SparsityPlan:
    """The record with the names that its matrices have in this model: without the path of a part that holds them there, or
    below the path of one that holds them here. Matrices that this model lacks are dropped."""
    paths = dict(model.named_modules(remove_duplicate=False))
    ends: dict[str, list[str]] = {}
    for path in paths:
        parts = path.split(".")
        for start in range(1, len(parts)):
            ends.setdefault(".".join(parts[start:]), []).append(path)
    found: dict[str, MatrixPlan] = {}
    for name, matrix in record.matrices.items():
        owner = name.rpartition(".")[0] if name.endswith("]") else name
        parts = owner.split(".")
        shorter = (".".join(parts[start:]) for start in range(len(parts)))
        here = [next((path for path in shorter if path in paths), "")]
        if not here[0]:
            here = ends.get(owner, [])
        if len(here) == 1:
            candidate = here[0] + name.removeprefix(owner)
            if _shape(model, candidate) == (matrix.rows, matrix.columns):
                found[candidate] = matrix
    return record.model_copy(update={"matrices": found})


def _shape(model: nn.Module, name: str) -> tuple[int, ...] | None:
    try:
        return tuple(weight_of(model, name).shape)
    except (AttributeError, IndexError):
        return None
