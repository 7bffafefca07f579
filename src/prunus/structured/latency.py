"""How long a model takes on this machine, and how much of that each unit takes at each width: measured, in place, by a few narrow copies."""

from __future__ import annotations

import copy
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from pydantic import Field
from torch import nn
from torch.utils.hooks import RemovableHandle

from prunus.anatomy import Anatomy, Unit, linears
from prunus.errors import PrunusError
from prunus.modules import evaluating
from prunus.plan import Plan
from prunus.structured.surgery import narrow
from prunus.typed import Typed

WIDTHS = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Shares of a unit's channels at which it is timed; the last is the fewest that may stay."""


class LatencyTable(Typed):
    """Milliseconds of one call, and of each unit within it by its width."""

    total: float = Field(gt=0)
    """Of the whole model, with all channels."""
    units: dict[str, dict[int, float]]
    """Unit → width → milliseconds from its first layer to its last. Never less at more channels."""

    def of(self, name: str, width: int) -> float:
        """What a unit takes at a width, between two measured ones in proportion."""
        widths = sorted(self.units[name])
        place = min(max(bisect_left(widths, width), 1), len(widths) - 1) if widths[1:] else 0
        high, low = widths[place], widths[max(place - 1, 0)]
        times = self.units[name]
        share = 0.0 if high == low else (min(max(width, low), high) - low) / (high - low)
        return times[low] + share * (times[high] - times[low])

    def predict(self, plan: Plan) -> float:
        """What the model takes once a plan has been carried out."""
        gone = (
            self.of(n, unit.channels) - self.of(n, len(unit.kept)) for n, unit in plan.units.items() if n in self.units
        )
        return self.total - sum(gone)

    def costs(self, units: Sequence[Unit]) -> dict[str, tuple[float, ...]]:
        """Unit → milliseconds that leave with the first channel to go, the second, ….

        A unit that the table does not have was not called, and costs nothing.
        """
        found = {}
        for unit in units:
            known = unit.name in self.units
            times = [self.of(unit.name, width) if known else 0.0 for width in range(unit.channels, -1, -1)]
            found[unit.name] = tuple(more - less for more, less in pairwise(times))
        return found


@torch.no_grad()
def measure_latency(
    model: nn.Module, parts: Anatomy, units: Sequence[Unit], run: Callable[[], object], align: int = 1, repeats: int = 9
) -> LatencyTable:  # fmt: skip
    """Times one call of `run`, which must use `model`, and each unit within it at a few widths.

    All units are narrowed at once to a share of their channels, each time from the dense model, and timed where they stand, so that what
    they find in the caches is what they will find. The copies take turns, so that a machine that drifts favours none.

    Args:
        align: widths are multiples of it; without it, odd, as most that a search ends with.
        repeats: calls of each copy after one to warm up; medians count.

    Raises:
        PrunusError: the call uses none of the units.
    """
    variants = [_Variant(model, parts, units, share, align) for share in WIDTHS]
    try:
        with evaluating(model), torch.random.fork_rng():
            for repeat in range(repeats + 1):
                for variant in variants:
                    variant.time(run, counts=repeat > 0)
    finally:
        for variant in variants:
            variant.remove_hooks()
    dense = variants[0]
    if not any(dense.of_units.values()):
        raise PrunusError(
            "example", None, "it does not call this model, or no unit that is searched; give lambda: model(**batch)"
        )
    table = {unit.name: _rising(unit, variants) for unit in units if dense.of_units[unit.name]}
    between = [
        total - within for variant in variants for total, within in zip(variant.totals, variant.within, strict=True)
    ]
    inside = sum(times[max(times)] for times in table.values())
    return LatencyTable(total=statistics.median(between) + inside, units=table)


def _rising(unit: Unit, variants: Sequence[_Variant]) -> dict[int, float]:
    """Width → median milliseconds, made so that more channels never take less."""
    times: dict[int, float] = {}
    for variant in sorted(variants, key=lambda variant: variant.widths[unit.name]):
        found = statistics.median(variant.of_units[unit.name])
        times[variant.widths[unit.name]] = max(found, *times.values()) if times else found
    return times


class _Variant:
    """The model with all units narrowed to a share of their channels, which stands in for it while it is timed."""

    def __init__(self, model: nn.Module, parts: Anatomy, units: Sequence[Unit], share: float, align: int):
        self.widths = {unit.name: _width(unit.channels, share, align) for unit in units}
        self.of_units: dict[str, list[float]] = {unit.name: [] for unit in units}
        self.totals: list[float] = []
        self.within: list[float] = []
        """Of each call, the milliseconds within any unit."""
        self._model, self._copy = model, copy.deepcopy(model)
        self._began: dict[str, float] = {}
        self._spent: dict[str, float] = {}
        masks = {unit.name: torch.arange(unit.channels) < self.widths[unit.name] for unit in units}
        narrow(self._copy, parts, Plan.from_masks(parts, masks))
        self._handles: list[RemovableHandle] = []
        for unit in units:
            for path in (unit.path, *unit.twins):
                *producers, (_, consumer) = linears(self._copy, unit, path)
                for _, layer in producers:
                    self._handles.append(layer.owner.register_forward_pre_hook(partial(self._begins, unit.name)))
                self._handles.append(consumer.owner.register_forward_hook(partial(self._ends, unit.name)))

    def time(self, run: Callable[[], object], counts: bool) -> None:
        """One call, with the copy's parts in the model's place."""
        own = self._model.__dict__
        self._spent, self._began = {}, {}
        object.__setattr__(self._model, "__dict__", self._copy.__dict__)
        try:
            start = _now()
            run()
            total = _now() - start
        finally:
            object.__setattr__(self._model, "__dict__", own)
        if counts:
            self.totals.append(total)
            self.within.append(sum(self._spent.values()))
            for name, spent in self._spent.items():
                self.of_units[name].append(spent)

    def remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _begins(self, name: str, *_: object) -> None:
        if name not in self._began:
            self._began[name] = _now()

    def _ends(self, name: str, *_: object) -> None:
        began = self._began.pop(name, None)
        if began is not None:
            self._spent[name] = self._spent.get(name, 0.0) + _now() - began


def _width(channels: int, share: float, align: int) -> int:
    if share == 1:
        return channels
    width = max(int(channels * share) // align, 1) * align
    return min(width, channels) if align > 1 else max(width - 1 + width % 2, 1)


def _now() -> float:
    """Milliseconds, once what was given to an accelerator is done."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() * 1000
