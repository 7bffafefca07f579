"""Shares of units by an allocation method: ECoFLaP, OWL or another one says how much of each goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from prunus.allocation import allocate
from prunus.anatomy import Anatomy, Unit
from prunus.calibrated.method import Calibrated
from prunus.structured import WithinUnit

MOST = 0.95
"""No unit loses more than this share, unless all do."""


def allotted(
    model: nn.Module, parts: Anatomy, units: Sequence[Unit], method: Calibrated, batches: Sequence[Any], bf16: bool, progress: bool
) -> Calibrated:  # fmt: skip
    """The method with a share for each unit, that come to its ratio.

    Args:
        method: with the ratio that its budget comes to.

    Raises:
        PrunusError: as `allocate`.
    """
    given = method.allocation
    if given is None:
        return method
    settings = {**given.model_dump(), "sparsity": method.goal}
    weights = [path for unit in units for path in unit.linear_paths]
    plan = allocate(model, type(given)(**settings), batches, include=weights, bf16=bf16, progress=progress)
    found = plan.unit_ratios(parts)
    sizes = {unit.name: float(unit.channels * unit.channel_cost) for unit in units}
    shares = scaled({unit.name: found[unit.name] for unit in units}, sizes, method.goal)
    return method.model_copy(update={"scope": WithinUnit(ratios=shares)})


def scaled(shares: Mapping[str, float], sizes: Mapping[str, float], goal: float) -> dict[str, float]:
    """Shares in the same proportions, up to the limit, that come to `goal` of all."""
    most, found = max(MOST, goal), dict(shares)
    for _ in shares:
        full = {name for name, share in found.items() if share >= most}
        rest = sum(sizes[name] * share for name, share in found.items() if name not in full)
        due = goal * sum(sizes.values()) - most * sum(sizes[name] for name in full)
        found = {name: most if name in full else share * due / max(rest, 1e-30) for name, share in found.items()}
        if all(share <= most for share in found.values()):
            break
    return found
