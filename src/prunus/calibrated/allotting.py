"""Shares of units by an allocation method: ECoFLaP, OWL or another one says how much of each goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus.allocation import allocate
from prunus.anatomy import Anatomy, Unit
from prunus.calibrated.method import Calibrated
from prunus.losses import Loss
from prunus.structured import WithinUnit, cost_of

MOST = 0.95
"""No unit loses more than this share before all have lost as much."""
LEAST, LAST = 1e-6, 1e12
"""What is taken for a share of nothing, in channels; and what is added to the level of channels that go once all others have."""


def allotted(
    model: nn.Module, parts: Anatomy, units: Sequence[Unit], method: Calibrated, batches: Sequence[Any], loss: Loss, bf16: bool, progress: bool
) -> Calibrated:  # fmt: skip
    """The method with a share for each unit, in whole channels, that come to its ratio.

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
    plan = allocate(model, type(given)(**settings), batches, loss, include=weights, bf16=bf16, progress=progress)
    shares = in_channels(plan.unit_ratios(parts), tuple(units), method)
    return method.model_copy(update={"scope": WithinUnit(ratios=shares)})


def in_channels(shares: Mapping[str, float], units: tuple[Unit, ...], method: Calibrated) -> dict[str, float]:
    """Shares of the units' cost in the same proportions, in as many whole channels as come to the method's ratio.

    The n-th channel of a unit goes at the level (n − ½) / (its share · its channels), by which Webster's rule rounds.
    """
    costs = method.unit_costs(units)
    levels = {unit.name: _levels(shares[unit.name], unit.channels) for unit in units}
    kept = method.for_units(units).select(levels, costs, method.goal)
    wholes = {unit.name: cost_of(costs[unit.name], unit.channels) for unit in units}
    return {name: cost_of(costs[name], int((~mask).sum())) / (wholes[name] or 1.0) for name, mask in kept.items()}


def _levels(share: float, channels: int) -> Tensor:
    """The sooner a channel goes, the higher, (channels,), fp64."""
    places = torch.arange(channels, dtype=torch.float64, device="cpu") + 0.5
    return -places / max(share * channels, LEAST) - LAST * (places > MOST * channels)
