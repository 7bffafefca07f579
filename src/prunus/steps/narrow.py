"""Step `narrow`: removes channels by what calibration data say, without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from prunus.calibrated import Calibrated, consumers_of, loadable, narrow, refuse_compensation, score_channels, units_of
from prunus.errors import PrunusError
from prunus.steps.bench import Bench
from prunus.steps.prune import Calibration
from prunus.steps.step import History, Sketch, Step
from prunus.structured import Whole
from prunus.unstructured import WalkOptions


class NarrowStep(Step):
    """Removes channels by what calibration data say, without training, and fits what is left to make up for it."""

    step: Literal["narrow"] = "narrow"
    method: Calibrated
    """How much goes, by what score, and how it is made up for."""
    calibration: Calibration = Calibration()
    """What the method is shown."""
    walk: WalkOptions = WalkOptions()
    """How the data are walked through the model."""

    def follow(self, earlier: Sequence[Step]) -> None:
        super().follow(earlier)
        if self.method.compensation == "refit" and any(step.prunes for step in earlier):
            raise PrunusError(
                "method.compensation", "refit", "it would fill the zeros of the prune step; narrow first, or take bias or none"
            )  # fmt: skip

    def check(self, before: Sketch) -> Sketch:
        _, units, knobs = units_of(before.model, before.anatomy, self.method)
        refuse_compensation(before.model, self.method, consumers_of(before.model, units, before.survey))
        if not self.method.counts_an_example:  # which is run once there are weights
            whole = Whole(before.anatomy, before.model)
            loadable(before.model, self.method, knobs).fit(whole, units).check(units)
        return before

    def carry_out(self, bench: Bench) -> History:
        if not bench.output.exists():
            model = bench.load().to(bench.device)
            batches = bench.task.calibration(self.calibration.samples, self.calibration.batch_size)
            scores = score_channels(
                model, self.method, batches, options=self.walk, latency=self.method.max_milliseconds is not None
            )
            scores.save(bench.folder / "scores.safetensors")
            model, plan = narrow(model, self.method, batches, options=self.walk, scores=scores, inplace=True)
            bench.save_plan(plan)
            bench.save(model)
        return {"log": []}
