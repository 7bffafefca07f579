"""Step `narrow`: removes channels by what calibration data say, without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Literal, Self

from pydantic import model_validator
from transformers import PreTrainedModel

from prunus.calibrated import (
    Calibrated,
    Depth,
    drop_blocks,
    narrow,
    refuse_impossible,
    score_channels,
    stacks_of,
)
from prunus.errors import PrunusError
from prunus.losses import own_loss
from prunus.steps.bench import Bench
from prunus.steps.prune import Calibration
from prunus.steps.step import History, Sketch, Step
from prunus.storage import write_text
from prunus.tasks import Task
from prunus.unstructured import WalkOptions


class NarrowStep(Step):
    """Removes whole blocks, channels or both by what calibration data say, without training, and fits what is left to make up for it."""

    step: Literal["narrow"] = "narrow"
    method: Calibrated | None = None
    """How many channels go, by what score, and how it is made up for; those of the blocks that are left."""
    depth: Depth | None = None
    """How many whole blocks go first, and by what."""
    calibration: Calibration = Calibration()
    """What the method is shown; where the loss counts, training items with the task's loss."""
    walk: WalkOptions = WalkOptions()
    """How the data are walked through the model."""

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if self.method is None and self.depth is None:
            raise PrunusError("method", None, "say which channels are to go (method), how many blocks (depth), or both")
        return self

    def follow(self, earlier: Sequence[Step]) -> None:
        super().follow(earlier)
        prunes = any(step.prunes for step in earlier)
        if prunes and self.depth is not None:
            raise PrunusError(
                "depth", self.depth.blocks, "the record of the prune step names blocks; drop blocks first"
            )
        if prunes and self.method is not None and self.method.compensation == "refit":
            raise PrunusError(
                "method.compensation", "refit", "it would fill the zeros of the prune step; narrow first, or take bias or none"
            )  # fmt: skip

    def check(self, before: Sketch) -> Sketch:
        if self.depth is not None and isinstance(before.model, PreTrainedModel):
            stacks_of(before.model, self.depth)
        if self.method is not None:
            refuse_impossible(before.model, self.method, before.anatomy, before.survey, shorter=self.depth is not None)
        return before

    def suit_data(self, task: Task) -> None:
        task.check_calibration(self.calibration.samples)
        by_loss = self.depth is not None and self.depth.by != "cosine"
        if by_loss or (self.method is not None and self.method.asks_for_loss):
            task.check_loss()

    def carry_out(self, bench: Bench) -> History:
        if not bench.is_done():
            model, wanted = bench.load().to(bench.device), self.calibration
            if self.depth is not None:
                batches, loss = bench.task.shown(wanted.samples, wanted.batch_size, self.depth.by != "cosine")
                call = None if loss is own_loss else loss
                model, gone = drop_blocks(
                    model, self.depth, batches, call=call, loss=loss, options=self.walk, inplace=True
                )
                bench.keep("blocks.json", partial(write_text, text=json.dumps(gone) + "\n"))
            if self.method is not None:
                batches, loss = bench.task.shown(wanted.samples, wanted.batch_size, self.method.asks_for_loss)
                scores = None
                if not self.method.score.whole_experts:  # what they are worth is not kept as a file
                    timed = self.method.max_milliseconds is not None
                    scores = score_channels(model, self.method, batches, options=self.walk, latency=timed, loss=loss)
                    bench.keep("scores.safetensors", scores.save)
                model, plan = narrow(
                    model, self.method, batches, options=self.walk, scores=scores, inplace=True, loss=loss
                )
                bench.save_plan(plan)
            bench.save(model)
        return {"log": []}
