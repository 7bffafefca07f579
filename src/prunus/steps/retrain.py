"""Step `retrain`: trains the extracted model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from prunus.anatomy import anatomy
from prunus.checkpoint import load_model
from prunus.errors import PrunusError
from prunus.repair import Distillation, Lesson
from prunus.steps.bench import Bench
from prunus.steps.step import History, Step
from prunus.tasks import Task
from prunus.training import Training


class RetrainStep(Step):
    """Trains the extracted model."""

    fills_zeros: ClassVar[bool] = True
    step: Literal["retrain"] = "retrain"
    train: Training
    """How to train."""
    distillation: Distillation | None = None
    """What to learn from the dense model beside the task."""

    def follow(self, earlier: Sequence[Step]) -> None:
        if not earlier:
            raise PrunusError("step", self.step, "search or prune first; there is nothing to repair yet")
        super().follow(earlier)

    def suit_data(self, task: Task) -> None:
        task.check_loss()

    def carry_out(self, bench: Bench) -> History:
        model, loss = bench.load(), None
        if self.distillation is not None:
            blocks = list(dict.fromkeys(unit.block for unit in anatomy(model)))
            loss = Lesson(self.distillation, bench.task.predict, load_model(bench.dense), blocks)
        log = bench.train(model, self.train, "retrain", loss=loss)
        bench.save(model)
        return {"log": log}
