"""How far a narrowing has come: in memory nothing is left of one that was interrupted."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from prunus.unstructured import Weights


class State(Weights):
    """Where the weights of blocks are while nobody uses them, and what is known of blocks that are done."""

    def scores(self, block: str) -> dict[str, Tensor] | None:
        """Unit → what its channels are worth, (channels,), where that was found earlier."""
        return None

    def scored(self, block: str, worth: dict[str, Tensor]) -> None:
        """Called when the units of a block have been scored."""

    def is_fitted(self, block: str) -> bool:
        """Whether what is left of a block makes up for what goes already."""
        return False

    def fitted(self, block: str, parameters: Sequence[nn.Parameter]) -> None:
        """Called when a block has been fitted, with the parameters that were written."""
