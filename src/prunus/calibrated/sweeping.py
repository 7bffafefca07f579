"""A sweep: one pass of scores, many budgets, and which of the narrow models no other one beats."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import nn

from prunus.anatomy import Unit, anatomy
from prunus.batches import calls_the_model, checked
from prunus.calibrated.channel_scores import ChannelScores
from prunus.calibrated.method import Calibrated
from prunus.calibrated.narrowing import narrow
from prunus.calibrated.planning import plan_channels, refuse_allocation, score_channels
from prunus.calibrated.request import in_channels_of, refuse_impossible
from prunus.errors import PrunusError
from prunus.figures import png
from prunus.fingerprint import taken
from prunus.losses import own_loss
from prunus.modules import evaluating
from prunus.parallel import agreeing, of_first
from prunus.plan import Plan
from prunus.refusals import expect
from prunus.storage import results_folder, write_bytes, write_text
from prunus.structured import Price, Whole, cost_of, searchable
from prunus.typed import Typed
from prunus.unstructured import Call, WalkOptions

Cost = Literal["parameters", "macs", "bytes", "milliseconds"]
AXES: dict[Cost, str] = {
    "parameters": "parameters", "macs": "multiply-accumulates", "bytes": "bytes", "milliseconds": "milliseconds, predicted",
}  # fmt: skip


class Point(Typed):
    """One model of a sweep."""

    budget: dict[str, Any]
    """The method's settings; empty of the dense model."""
    ratio: float
    """Share of the searched cost that is gone."""
    parameters: float
    """Shared ones once."""
    macs: float
    """Multiply-accumulates of the scored call."""
    bytes: float
    """As the method's `storage` counts them."""
    milliseconds: float | None
    """Of the scored call, predicted; None where no time was measured."""
    quality: float
    """What was measured."""
    front: tuple[Cost, ...] = ()
    """Costs by which no other model is as small and as good."""


class Sweep(Typed):
    """The models of a sweep, the dense one first."""

    quality: str
    """What was measured."""
    higher_is_better: bool
    """Whether more of it is better."""
    points: tuple[Point, ...]
    """One for every budget, and before them the dense model's."""

    def save(self, folder: str | Path, cost: Cost = "parameters") -> None:
        """Writes `pareto.json`, and `pareto.png` with one cost against what was measured.

        Raises:
            PrunusError: that cost was not measured, or nothing can be written there.
        """
        place, picture = results_folder(folder), self._picture(cost)
        write_text(place / "pareto.json", json.dumps(self.model_dump(mode="json"), indent=1) + "\n")
        write_bytes(place / "pareto.png", picture)

    def with_front(self) -> Self:
        """The same with what is on the front, by each cost."""
        marked = [
            point.model_copy(update={"front": tuple(c for c in AXES if self._stands(point, c))})
            for point in self.points
        ]
        return self.model_copy(update={"points": tuple(marked)})

    def _stands(self, point: Point, cost: Cost) -> bool:
        own, sign = getattr(point, cost), 1 if self.higher_is_better else -1
        if own is None:
            return False
        for other in self.points:
            theirs = getattr(other, cost)
            gains = (own - theirs, sign * (other.quality - point.quality))
            if min(gains) >= 0 and max(gains) > 0:
                return False
        return True

    def _picture(self, cost: Cost) -> bytes:
        from matplotlib.figure import Figure  # here, because it takes 30 MB that no other command needs

        if any(getattr(point, cost) is None for point in self.points):
            raise PrunusError("cost", cost, "no time was measured; score with latency=True")
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.add_subplot()
        best = sorted((p for p in self.points if cost in p.front), key=lambda p: float(getattr(p, cost)))
        axes.plot([getattr(p, cost) for p in best], [p.quality for p in best], color="#2f6f3e", label="front")
        axes.scatter([getattr(p, cost) for p in self.points], [p.quality for p in self.points], color="0.4", zorder=2)
        for point in self.points:
            axes.annotate(
                f"{point.ratio:.0%}",
                (getattr(point, cost), point.quality),
                fontsize=8,
                xytext=(3, 3),
                textcoords="offset points",
            )
        axes.set_xlabel(AXES[cost])
        axes.set_ylabel(self.quality + ("" if self.higher_is_better else ", lower is better"))
        axes.grid(alpha=0.3)
        return png(figure)


@agreeing()
def sweep(
    model: nn.Module, methods: Sequence[Calibrated], batches: Iterable[Any], *, scores: ChannelScores | None = None,
    measure: Callable[[nn.Module], float] | None = None, quality: str = "loss", higher_is_better: bool = False, call: Call | None = None,
    options: WalkOptions | None = None,
) -> Sweep:  # fmt: skip
    """Narrows a model by several budgets, from one pass of scores, and measures what comes of each. The model stays as it is.

    Args:
        model: any model that `anatomy` knows.
        methods: the budgets, of one kind of score: `[Calibrated(ratio=r) for r in (0.1, 0.2, 0.3)]`.
        batches: calibration data.
        scores: what `score_channels` found earlier.
        measure: how good a model is; by default its mean loss on `batches`, on which it was fitted.
        quality: what that is called.
        higher_is_better: which way is better.
        call: runs a batch; by default `model(**batch)`.
        options: how to walk.

    Raises:
        PrunusError: as `narrow`; there is no budget.
    """
    refuse_budgets(model, methods)
    if measure is not None and not callable(measure):
        raise PrunusError("measure", measure, "give a function(model) that returns a number, how good it is")
    given = taken(checked(batches, calls_the_model(call)))
    judge = measure or (lambda candidate: _mean_loss(candidate, given))
    if scores is None:
        scores = score_channels(model, methods[0], given, call=call, options=options)
    inner = searchable(model)
    parts = anatomy(inner)
    wholes = [scores.whole(in_channels_of(parts, method), inner) for method in methods]
    plans = [plan_channels(scores, method, model) for method in methods]  # refusals first
    points = [_point(scores, wholes[0], methods[0], None, judge(model))]
    for method, whole, plan in zip(methods, wholes, plans, strict=True):
        small, _ = narrow(model, method, given, plan=plan, call=call, options=options)
        points.append(_point(scores, whole, method, plan, judge(small)))
    return of_first(Sweep(quality=quality, higher_is_better=higher_is_better, points=tuple(points)).with_front())


def refuse_budgets(model: nn.Module, methods: Sequence[Calibrated]) -> None:
    """Refuses budgets of which one can be seen to be impossible before channels are scored.

    Raises:
        PrunusError: as `plan_channels`, but for what is counted on a call; there is no budget, or no list of them.
    """
    expect("methods", methods, list | tuple, "a list of budgets, such as [prunus.Calibrated(ratio=0.3)]")
    if not methods:
        raise PrunusError("methods", "none", "give at least one budget, such as prunus.Calibrated(ratio=0.3)")
    for method in methods:
        expect("methods", method, Calibrated, "budgets, such as [prunus.Calibrated(ratio=0.3)]")
        refuse_allocation(method)
        refuse_impossible(model, method)


def _point(scores: ChannelScores, whole: Whole, method: Calibrated, plan: Plan | None, found: float) -> Point:
    units = [unit for unit in whole.parts if unit.name in scores.worth]
    latency = scores.header.latency
    dense = Plan(model=whole.parts.model, ratio=0, units={})
    return Point(
        budget={} if plan is None else method.model_dump(mode="json", exclude_defaults=True), ratio=0 if plan is None else plan.ratio,
        parameters=_left(whole.parameters(units), units, plan), macs=_left(whole.macs(units), units, plan),
        bytes=_left(whole.bytes(units, method.storage), units, plan), quality=found,
        milliseconds=None if latency is None else latency.predict(plan or dense),
    )  # fmt: skip


def _left(price: Price, units: Sequence[Unit], plan: Plan | None) -> float:
    """What the model costs once a plan has been carried out."""
    gone = {name: unit.channels - len(unit.kept) for name, unit in plan.units.items()} if plan is not None else {}
    return price.total - sum(cost_of(price.channel[unit.name], gone.get(unit.name, 0)) for unit in units)


@torch.no_grad()
def _mean_loss(model: nn.Module, batches: Sequence[Any]) -> float:
    with evaluating(model):
        return sum(float(own_loss(model, batch)) for batch in batches) / len(batches)
