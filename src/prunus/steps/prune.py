"""Step `prune`: sets weights to zero, block by block, without training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import model_validator
from torch.utils.data import DataLoader, Subset

from prunus.allocation import AnyAllocator, allocate
from prunus.checkpoint import local_folder, prune_folder
from prunus.errors import PrunusError
from prunus.parallel import of_first
from prunus.plan import SparsityPlan
from prunus.steps.bench import Bench
from prunus.steps.step import History, Sketch, Step
from prunus.tasks import Task
from prunus.typed import Count, Typed
from prunus.unstructured import AnyPruner, WalkOptions, refuse_gradients, settle


class Calibration(Typed):
    """What a pruner is shown: training inputs of the task."""

    samples: Count = 128
    """Items, spread evenly over the training data."""
    batch_size: Count = 8
    """Items that go through the model at once."""


class PruneStep(Step):
    """Sets weights to zero, block by block, without training."""

    prunes: ClassVar[bool] = True
    step: Literal["prune"] = "prune"
    method: AnyPruner
    """Which weights go, and, without an allocation, how many."""
    allocate: AnyAllocator | None = None
    """How the sparsity is shared out over the model; None is the method's own sparsity, everywhere alike."""
    allocation_data: Calibration = Calibration(samples=32, batch_size=8)
    """What the allocation is shown: training items, with the task's loss."""
    calibration: Calibration = Calibration()
    """What the method is shown."""
    include: tuple[str, ...] = ()
    """Globs over module paths and towers; empty is everything but the connector."""
    exclude: tuple[str, ...] = ()
    """Globs that take away again."""
    walk: WalkOptions = WalkOptions()
    """How the data are walked through the model."""
    keep_zeros: bool | None = None
    """Whether weights that are zero already stay so; None is yes for a model that was pruned before."""

    @model_validator(mode="after")
    def _one_sparsity(self) -> PruneStep:
        if self.allocate is not None and (self.method.sparsity is not None or self.method.nofm is not None):
            raise PrunusError(
                "method.sparsity", self.method.sparsity or self.method.pattern,
                "the allocation says how sparse everything becomes; leave it out here",
            )  # fmt: skip
        return self

    def check(self, before: Sketch) -> Sketch:
        refuse_gradients(self.method)
        if self.allocate is None:
            chosen, _ = settle(before.model, self.method, None, self.include, self.exclude, before.survey)
        else:
            chosen = self.allocate.check(before.model, before.survey.matrices, self.include, self.exclude)
        return replace(before, pruned=before.pruned | {matrix.name for matrix in chosen})

    def suit_data(self, task: Task) -> None:
        task.check_calibration(self.calibration.samples)
        if self.allocate is not None and self.allocate.needs_loss:
            task.check_loss()

    def carry_out(self, bench: Bench) -> History:
        if not bench.is_done():
            plan = self._plan(bench)
            batches = bench.task.calibration(self.calibration.samples, self.calibration.batch_size)
            prune_folder(
                local_folder(bench.current), bench.output, self.method, batches, plan=plan, include=self.include,
                exclude=self.exclude, options=self.walk, device=bench.device, keep_zeros=self.keep_zeros,
            )  # fmt: skip
        return {"log": []}

    def _plan(self, bench: Bench) -> SparsityPlan | None:
        """The plan of the allocation; a run that goes on takes the one that is already there."""
        if self.allocate is None:
            return None
        file = bench.folder / "plan.json"
        if not of_first(file.exists()):
            data, wanted = bench.task.still_data(), self.allocation_data
            size = len(data)  # type: ignore[arg-type]
            count = min(wanted.samples, size)
            picked = Subset(data, [place * size // count for place in range(count)])
            loader: DataLoader[Any] = DataLoader(picked, wanted.batch_size, collate_fn=bench.task.collate)
            plan = allocate(
                bench.load().to(bench.device), self.allocate, loader, bench.task.loss, self.include, self.exclude,
                bf16=self.walk.bf16,
            )  # fmt: skip
            bench.save_plan(plan)
        return SparsityPlan.load(file)
