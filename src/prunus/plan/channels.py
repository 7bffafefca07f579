"""Plans of the structured road: which channels of which unit stay."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator
from torch import Tensor

from prunus.anatomy import Anatomy, Unit
from prunus.errors import PrunusError
from prunus.plan.file import PlanFile
from prunus.plan.history import Entry, Recorded


def encode_channels(channels: Iterable[int]) -> str:
    """Sorted channel numbers as ranges: [0, 1, 2, 5] → "0-2,5"."""
    runs: list[list[int]] = []
    for channel in channels:
        if runs and channel == runs[-1][1] + 1:
            runs[-1][1] = channel
        else:
            runs.append([channel, channel])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def decode_channels(text: object) -> tuple[int, ...]:
    """The inverse of `encode_channels`; any other iterable of numbers is taken as it is.

    Raises:
        ValueError: it is no such text, or its channels are not sorted or more than a unit can have. Nothing is built of it then.
    """
    if not isinstance(text, str):
        if not isinstance(text, Iterable):
            raise ValueError("write channels as text, such as 0-31,40")
        return tuple(text)
    channels: list[int] = []
    for run in filter(None, text.split(",")):
        written = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", run, re.ASCII)
        if written is None:
            raise ValueError(f"{run[:30]!r} is no range of channels, such as 0-31")
        first, last = int(written[1]), int(written[2] or written[1])
        if not (channels[-1] if channels else -1) < first <= last < WIDEST:
            raise ValueError(f"kept must be sorted and without repeats, within the {WIDEST:,} channels a unit can have")
        channels.extend(range(first, last + 1))
    return tuple(channels)


WIDEST = 1 << 22
"""More channels than any unit has: sixteen times as many as a vocabulary has words."""
Channels = Annotated[tuple[int, ...], BeforeValidator(decode_channels), PlainSerializer(encode_channels)]


class UnitPlan(BaseModel):
    """What stays of one unit."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    channels: int = Field(gt=0, le=WIDEST)
    """Width of the unit before."""
    kept: Channels
    """Channels that stay, sorted. In JSON: ranges, such as "0-31,40"."""

    @model_validator(mode="after")
    def _valid(self) -> UnitPlan:
        if not self.kept:
            raise ValueError("kept is empty: a unit keeps at least one channel")
        if list(self.kept) != sorted(set(self.kept)):
            raise ValueError("kept must be sorted and without repeats")
        if not 0 <= self.kept[0] <= self.kept[-1] < self.channels:
            raise ValueError(f"kept must lie in 0..{self.channels - 1}")
        return self

    def after(self, earlier: UnitPlan) -> UnitPlan:
        """One plan for the unit as it was before `earlier` that does what both do."""
        return UnitPlan(channels=earlier.channels, kept=tuple(earlier.kept[channel] for channel in self.kept))


class Plan(Recorded, PlanFile):
    """Kept channels per unit: the outcome of a structured search and the input of surgery."""

    format: Literal["prunus.plan/2"] = "prunus.plan/2"
    model: str
    """Class of the model the plan was made for."""
    ratio: float = Field(ge=0, lt=1)
    """The achieved share of the prunable cost that leaves, in the units of the method's cost."""
    units: dict[str, UnitPlan]
    """Unit → what stays of it; units that are not named stay whole."""
    mirrors: dict[str, str] = Field(default_factory=dict)
    """Copy → original, of modules that follow others."""

    @classmethod
    def from_masks(
        cls,
        anatomy: Anatomy,
        masks: dict[str, Tensor],
        method: dict[str, Any] | None = None,
        ratio: float | None = None,
    ) -> Plan:
        """A plan from boolean masks (channels,), True where the channel stays. Units without a mask stay whole.

        Args:
            method: name and settings of what decided, for the record.
            ratio: the achieved one in the method's own cost; None counts parameters.
        """
        units = {
            name: UnitPlan(channels=mask.numel(), kept=tuple(mask.nonzero().flatten().tolist()))
            for name, mask in masks.items()
        }
        if ratio is None:
            costs = {name: anatomy[name].channel_cost for name in units}
            total = sum(costs[name] * unit.channels for name, unit in units.items())
            stays = sum(costs[name] * len(unit.kept) for name, unit in units.items())
            ratio = 1 - stays / total if total else 0.0
        history = (Entry.of("search", method, achieved=ratio),) if method else ()
        return cls(model=anatomy.model, history=history, ratio=ratio, units=units, mirrors=anatomy.mirrors)

    def kept(self, unit: Unit) -> Tensor:
        """Sorted indices (kept,), int64, of the channels of `unit` that stay."""
        plan = self.units.get(unit.name)
        return torch.tensor(plan.kept if plan else range(unit.channels), device="cpu")

    def check(self, anatomy: Anatomy) -> None:
        """Refuses a plan that was made for another model, naming the first mismatch.

        Raises:
            PrunusError: a unit is missing or has another width.
        """
        for name, plan in self.units.items():
            where = f"plan.units[{name}]"
            if name not in anatomy.by_name:
                raise PrunusError(
                    where, plan.channels, f"this {anatomy.model} has no such unit; the plan is for another model"
                )
            unit = anatomy[name]
            if unit.channels != plan.channels:
                raise PrunusError(
                    where, plan.channels, f"in this {anatomy.model} the unit has {unit.channels} channels; "
                    "the plan is for another model, or was already applied",
                )  # fmt: skip
            if len(plan.kept) < unit.least:
                raise PrunusError(
                    where, len(plan.kept), f"it needs {unit.least} at least: its router sends every token to so many"
                )

    def after(self, earlier: Plan) -> Plan:
        """One plan for the dense model that does what `earlier` and then this one did."""
        units = dict(earlier.units)
        for name, later in self.units.items():
            before = earlier.units.get(name)
            units[name] = later if before is None else later.after(before)
        ratio = 1 - (1 - earlier.ratio) * (1 - self.ratio)
        history = (*earlier.history, *self.history)
        mirrors = {**earlier.mirrors, **self.mirrors}
        return self.model_copy(update={"units": units, "ratio": ratio, "history": history, "mirrors": mirrors})
