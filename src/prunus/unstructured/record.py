"""The record of zeros that a model's config carries, and what its weights say."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from prunus.anatomy import place_of
from prunus.plan import SparsityPlan

logger = logging.getLogger(__name__)
RECORD = "prunus_sparsity"
"""The entry of a config that holds the record."""


def note(model: nn.Module, achieved: SparsityPlan) -> None:
    """Puts the record into the config of a transformers model, beside what an earlier pruning did to other matrices."""
    config = getattr(model, "config", None)
    if config is not None:
        setattr(config, RECORD, achieved.after(sparsity_of(model)).model_dump(mode="json"))


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
    names = _names_here(model, record)
    record = record.model_copy(update={"matrices": {names[n]: m for n, m in record.matrices.items() if n in names}})
    zeros = {
        name: zeros_in(place_of(model, name).view(model), matrix.pruned) for name, matrix in record.matrices.items()
    }
    wrong = [name for name, matrix in record.matrices.items() if zeros[name] != matrix.pruned]
    if not wrong:
        return record if record.matrices else None
    first = record.matrices[wrong[0]]
    logger.warning(
        "the config of this %s records zeros that its weights do not have, or have more of: %d of %d matrices differ, such as %s "
        "(recorded %d, there %d); what is there counts",
        type(model).__name__, len(wrong), len(zeros), wrong[0], first.pruned, zeros[wrong[0]],
    )  # fmt: skip
    return record.with_zeros(zeros) if any(zeros.values()) else None


def zeros_in(weight: Tensor, recorded: int) -> int:
    """How many weights are zero; as recorded, where that cannot be counted."""
    plain = type(weight) is Tensor and weight.is_floating_point() and not weight.is_meta
    return int((weight == 0).sum()) if plain else recorded


def _names_here(model: nn.Module, record: SparsityPlan) -> dict[str, str]:
    """Name in the record → name in this model, for every matrix that it has: without the path of a part that holds it there,
    or below the path of one that holds it here."""
    paths = dict(model.named_modules(remove_duplicate=False))
    ends: dict[str, list[str]] = {}
    for path in paths:
        parts = path.split(".")
        for start in range(1, len(parts)):
            ends.setdefault(".".join(parts[start:]), []).append(path)
    found: dict[str, str] = {}
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
                found[name] = candidate
    return found


def _shape(model: nn.Module, name: str) -> tuple[int, ...] | None:
    try:
        return tuple(place_of(model, name).view(model).shape)
    except (AttributeError, IndexError):
        return None
