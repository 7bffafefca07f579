"""A plan that is given, as the decision over the units of a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunus.anatomy import Anatomy, Unit
from prunus.calibrated.plain import Knob
from prunus.errors import PrunusError
from prunus.plan import Plan


def masks_of(plan: Plan, parts: Anatomy, units: Sequence[Unit], knobs: Sequence[Knob] | None) -> dict[str, Tensor]:
    """Which channels of the units stay by a plan: unit → bool (channels,), on the CPU.

    Raises:
        PrunusError: it was made for another model, takes units that the method leaves out, or what no plain config says.
    """
    plan.check(parts)
    names = {unit.name for unit in units}
    for name, unit in plan.units.items():
        if name not in names and len(unit.kept) < unit.channels:
            raise PrunusError(
                "plan",
                name,
                "the plan narrows it, and the method leaves it out; give the method by which the plan was made",
            )
    kept = {
        unit.name: torch.zeros(unit.channels, dtype=torch.bool, device="cpu").index_fill_(0, plan.kept(unit), True)
        for unit in units
    }
    for knob in knobs or ():
        if len({int(kept[unit.name].sum()) for unit in knob.units}) > 1:
            raise PrunusError(
                "plan",
                str(knob),
                "the plan keeps other numbers of channels of units that this entry sets; make it with plain=True",
            )
    return kept
