"""Step `search`: trains while searching for what to prune, then extracts."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from prunus.checkpoint import extract
from prunus.repair import Training
from prunus.steps.bench import Bench
from prunus.steps.step import History, Sketch, Step
from prunus.structured import UPop


class SearchStep(Step):
    """Trains while searching for what to prune, then extracts."""

    fills_zeros: ClassVar[bool] = True
    step: Literal["search"] = "search"
    method: UPop
    """What to search for."""
    train: Training
    """How to train meanwhile; the search spans all of its steps."""

    def check(self, before: Sketch) -> Sketch:
        units = before.anatomy.select(self.method.include, self.method.exclude)
        self.method.check(units)
        self.method.masks({unit.name: torch.zeros(unit.channels) for unit in units}, units, self.method.ratio)
        return before

    def carry_out(self, bench: Bench) -> History:
        from prunus.structured.callback import SearchCallback

        model, callback = bench.load(), SearchCallback(self.method)
        log = bench.train(model, self.train, "search", (callback,))
        plan = callback.plan()
        plan.save(bench.folder / "plan.json")
        bench.save(extract(model, plan, inplace=True))
        assert callback.search is not None
        return {"log": log, "ratio": callback.search.course}
