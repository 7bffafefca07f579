"""Step `search`: trains while searching for what to prune, then extracts."""

from __future__ import annotations

from typing import ClassVar, Literal

from prunus import structured
from prunus.checkpoint import extract
from prunus.steps.bench import Bench
from prunus.steps.step import History, Sketch, Step
from prunus.structured import AnySearch
from prunus.training import Training


class SearchStep(Step):
    """Trains while searching for what to prune, then extracts."""

    fills_zeros: ClassVar[bool] = True
    step: Literal["search"] = "search"
    method: AnySearch
    """What to search for."""
    train: Training
    """How to train meanwhile; the search spans all of its steps."""

    def check(self, before: Sketch) -> Sketch:
        self.method.check(before.anatomy.select(self.method.include, self.method.exclude))
        return before

    def carry_out(self, bench: Bench) -> History:
        model, callback = bench.load(), structured.SearchCallback(self.method)
        log = bench.train(model, self.train, "search", (callback,))
        plan = callback.plan()
        plan.save(bench.folder / "plan.json")
        bench.save(extract(model, plan, inplace=True))
        assert callback.search is not None
        return {"log": log, "ratio": callback.search.course}
