"""What a score of channels is: how much each channel of a unit matters, read off its weights and what reads them is given.

Shapes: R rows and C columns of a consumer, N channels, F columns of a channel.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from prunus.anatomy import Unit
from prunus.typed import Typed, named
from prunus.unstructured import Needs, Statistics


class Seen(NamedTuple):
    """A matrix that reads the channels of a unit, and what it is given by the dense model."""

    weight: Tensor
    """(R, C), fp32."""
    columns: Tensor
    """Its columns by channel, (N, F), on its device."""
    inputs: Statistics
    """The statistics that the score `needs`."""


class Score(Typed):
    """Base of the scores. With statistics it is asked of hidden neurons; channels of attentions are then worth what is lost without each.

    One of your own needs a name, `score: Literal["…"] = "…"`, and `of_matrix` (or `of`)."""

    score: str
    """The name by which recipes find it."""

    whole_experts: ClassVar[bool] = False
    """Whether it says what whole experts are worth, so that these leave, and no channels."""
    needs: ClassVar[Needs] = ()
    """The statistics of the consumer's inputs that are read, such as `(SquaredNorm,)`. Without any, no data are looked at."""

    def of(self, model: nn.Module, unit: Unit, seen: Sequence[Seen]) -> Tensor:
        """How much every channel of a unit matters, (N,). The channels with the smallest go first.

        Args:
            seen: the matrices that read the channels: one, or one of every expert that a token was routed to.
        """
        return sum((self.of_matrix(*one) for one in seen[1:]), self.of_matrix(*seen[0]))

    @abstractmethod
    def of_matrix(self, weight_RC: Tensor, columns_NF: Tensor, inputs: Statistics) -> Tensor:
        """How much every channel matters to one matrix, (N,), fp32; experts are added up."""


AnyScore = named(Score, "score")
"""A score that a recipe names."""
