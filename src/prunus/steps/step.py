"""What every step of a recipe is: settings, what it needs of the model before it, and what it does to it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NotRequired, TypedDict

from torch import nn

from prunus.anatomy import Anatomy, Survey, anatomy, survey
from prunus.errors import PrunusError
from prunus.steps.bench import Bench
from prunus.tasks import Task
from prunus.typed import Typed
from prunus.unstructured import sparsity_of


@dataclass(frozen=True)
class Sketch:
    """A model without weights, and what is known of it: what a step is checked against before anything is trained.

    Channels that a search will remove are still there: nobody knows yet which.
    """

    model: nn.Module
    """On the meta device."""
    anatomy: Anatomy
    """Its towers, blocks and units."""
    survey: Survey
    """The matrices of its blocks, and what is left dense."""
    has_zeros: bool
    """Whether the weights that the recipe starts from have been pruned, by the record in the config."""
    pruned: frozenset[str] = frozenset()
    """Names of the matrices that steps of the recipe prune."""

    @classmethod
    def of(cls, model: nn.Module) -> Sketch:
        """Reads a model, once."""
        parts = anatomy(model)
        return cls(model, parts, survey(model, any_type=True, parts=parts), sparsity_of(model) is not None)


class History(TypedDict):
    """What is kept of a step, in JSON, for the report."""

    log: list[dict[str, float]]
    """Rows with `step` and any of `loss`, `learning_rate`, `grad_norm`, `eval_…`."""
    ratio: NotRequired[list[Any]]
    """Rows (step, ratio asked for, ratio achieved) of a search."""
    said: NotRequired[str]
    """What became of the model, in a sentence."""


class Step(Typed):
    """Base of the steps. One of your own needs a name and `carry_out`; what it can refuse beforehand it says in `check`."""

    step: str
    """The name by which recipes find it."""
    prunes: ClassVar[bool] = False
    """Whether it sets weights to zero that are to stay so."""
    fills_zeros: ClassVar[bool] = False
    """Whether it trains every weight, so that none that is zero would stay so."""

    packs: ClassVar[bool] = False
    """Whether it leaves weights that no later step can read and change."""

    def follow(self, earlier: Sequence[Step]) -> None:
        """Says what can be said of the order of steps when a recipe is read.

        Raises:
            PrunusError: the step cannot stand after these.
        """
        if self.fills_zeros and any(step.prunes for step in earlier):
            raise PrunusError(
                "step", self.step, "it trains every weight and would fill the zeros of the prune step; take step repair, "
                "or put the prune step last",
            )  # fmt: skip

    def suit(self, task: Task) -> None:
        """Says what can be said of the task when a recipe is read.

        Raises:
            PrunusError: the step needs what the task does not have.
        """

    def suit_data(self, task: Task) -> None:
        """Says what can be said of the task's data; called before any step is carried out.

        Args:
            task: as the model needs it.

        Raises:
            PrunusError: the step needs more than there are.
        """

    def check(self, before: Sketch) -> Sketch:
        """What is known of the model after this step; called before any step is carried out.

        Raises:
            PrunusError: the step is impossible with this model.
        """
        return before

    @abstractmethod
    def carry_out(self, bench: Bench) -> History:
        """Makes the folder `bench.output` from the folder `bench.current`; what was interrupted is gone on with.

        Called again with the same folders after any interruption.
        """
