"""Step `repair`: trains a pruned model without losing a zero."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from prunus.checkpoint import load_model
from prunus.errors import PrunusError
from prunus.repair import AnyRepair, repair
from prunus.steps.bench import Bench
from prunus.steps.step import History, Sketch, Step
from prunus.tasks import Task
from prunus.training import Training


class RepairStep(Step):
    """Trains a pruned model without losing a zero."""

    step: Literal["repair"] = "repair"
    method: AnyRepair
    """What trains, and what it learns from."""
    train: Training
    """How to train."""

    def follow(self, earlier: Sequence[Step]) -> None:
        if not earlier:
            raise PrunusError("step", self.step, "search or prune first; there is nothing to repair yet")
        if not any(step.prunes for step in earlier):
            raise PrunusError("step", self.step, "it holds zeros, and nothing is pruned yet; take step retrain")

    def suit(self, task: Task) -> None:
        learns = self.method.distillation
        if learns is not None and learns.top_k is not None and getattr(task, "augment", None) is not None:
            raise PrunusError(
                "method.distillation.top_k", learns.top_k, "stored logits are those of pictures as they are; leave it out, or task.augment"
            )  # fmt: skip

    def suit_data(self, task: Task) -> None:
        task.check_loss()

    def check(self, before: Sketch) -> Sketch:
        self.method.check(before.survey.matrices, before.pruned)
        return before

    def carry_out(self, bench: Bench) -> History:
        model, task = bench.load(), bench.task
        log = repair(
            model, self.method, task.train_data(), self.train, partial(load_model, bench.unpruned), task.predict, task.collate,
            bench.checkpoints, bench.headline, bench.callbacks(), bench.seed, self.method.method,
        )  # fmt: skip
        bench.save(model)
        return {"log": log}
