"""The zeros of a checkpoint folder, counted in its files and held against its record."""

from __future__ import annotations

from pathlib import Path

from prunus.anatomy import place_of
from prunus.checkpoint.loading import without_weights
from prunus.checkpoint.naming import groups
from prunus.plan import SparsityPlan
from prunus.unstructured import named_here, recorded_sparsity, zeros_in


def sparsity_in(folder: Path) -> SparsityPlan | None:
    """The record of a folder with the zeros that its files hold, one tensor in memory at a time; None without a record.

    Raises:
        PrunusError: weights are missing or damaged.
    """
    model, shards = without_weights(folder)
    record = recorded_sparsity(model)
    if record is None:
        return None
    record = named_here(model, record)
    places = {name: place_of(model, name) for name in record.matrices}
    wanted = {place.parameter for place in places.values()}
    zeros = {name: matrix.pruned for name, matrix in record.matrices.items()}
    for group in groups(model, shards.places):
        if group.converter is None and group.first not in wanted:
            continue
        tensors = group.load(model, shards.read)
        for name, place in places.items():
            if place.parameter in tensors:
                zeros[name] = zeros_in(place.part(tensors[place.parameter]), zeros[name])
    return record.with_zeros(zeros)
