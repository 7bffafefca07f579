"""Step `search`: trains while searching for what to prune, then extracts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch.utils.data import Dataset, Subset
from transformers import PreTrainedModel

from prunus import structured
from prunus.calibration import spread
from prunus.checkpoint import extract
from prunus.errors import PrunusError
from prunus.steps.bench import Bench
from prunus.steps.step import History, Sketch, Step
from prunus.structured import AnySearch, RateGate, Whole
from prunus.tasks import Task
from prunus.training import Training


class SearchStep(Step):
    """Trains while searching for what to prune, then extracts."""

    fills_zeros: ClassVar[bool] = True
    step: Literal["search"] = "search"
    method: AnySearch
    """What to search for."""
    train: Training
    """How to train meanwhile; the search spans all of its steps."""

    def suit(self, task: Task) -> None:
        gate = self.method.needs().merit
        if gate is not None and gate.metric not in task.measured_on_items:
            place = "method.gate.metric" if hasattr(self.method, "gate") else "method.closing.gate.metric"
            raise PrunusError(
                place, gate.metric, f"{task.name} cannot measure it on training items; take one of {', '.join(task.measured_on_items)}"
            )  # fmt: skip

    def suit_data(self, task: Task) -> None:
        task.check_loss()

    def check(self, before: Sketch) -> Sketch:
        units = before.anatomy.select(self.method.include, self.method.exclude)
        if not self.method.needs().example:  # which is run once there are weights
            self.method.fit(Whole(before.anatomy, before.model), units).check(units)
        return before

    def carry_out(self, bench: Bench) -> History:
        model, needs = bench.load(), self.method.needs()
        data, measure = (None, None) if needs.merit is None else _held_out(bench.task, model, needs.merit)
        callback = structured.SearchCallback(
            self.method, example=bench.task.example(model, 1) if needs.example else None, measure=measure
        )
        log = bench.train(model, self.train, "search", (callback,), data=data)
        plan = callback.plan()
        bench.save_plan(plan)
        bench.save(extract(model, plan, inplace=True))
        assert callback.search is not None
        return {"log": log, "ratio": callback.search.course}


def _held_out(task: Task, model: PreTrainedModel, gate: RateGate) -> tuple[Dataset[Any], Callable[[], float]]:
    """The training items that train, and what measures a model on the others; the larger, the better."""
    data: Any = task.train_data()
    places = torch.arange(len(data))
    held = spread(places, max(1, round(gate.share * len(data))))
    is_held = torch.isin(places, held)
    sign = 1 if gate.metric in task.metrics and task.metrics[gate.metric].higher_is_better else -1
    still: Any = task.still_data()
    items = [still[place] for place in held.tolist()]
    return Subset(data, places[~is_held].tolist()), lambda: sign * task.measure_on(model, items)[gate.metric]
