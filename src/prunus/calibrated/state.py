"""How far a narrowing has come: in memory nothing is left of one that was interrupted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from prunus.unstructured import Weights


@dataclass(frozen=True)
class Known:
    """What a walk through the dense model says."""

    worth: dict[str, Tensor] = field(default_factory=dict)
    """Unit → what its channels are worth, (channels,)."""
    means: dict[str, Tensor] = field(default_factory=dict)
    """Matrix that reads channels → the mean of what it is given, (columns,), fp32; none where no compensation asks for them."""
    calls: dict[str, Mapping[int, int]] = field(default_factory=dict)
    """Block → batch → how often matrices that read channels were called; of no block with experts, whose calls depend on what they are
    given, and forgotten when work is interrupted."""

    def add(self, other: Known) -> None:
        """Adds what is known of another block."""
        self.worth.update(other.worth)
        self.means.update(other.means)
        self.calls.update(other.calls)


class State(Weights):
    """Where the weights of blocks are while nobody uses them, and what is known of blocks that are done."""

    def scores(self, block: str) -> Known | None:
        """What is known of the units of a block, where that was found earlier."""
        return None

    def scored(self, block: str, known: Known) -> None:
        """Called when the units of a block have been scored."""

    def is_fitted(self, block: str) -> bool:
        """Whether what is left of a block makes up for what goes already."""
        return False

    def fitted(self, block: str, parameters: Sequence[nn.Parameter]) -> None:
        """Called when a block has been fitted, with the parameters that were written."""
