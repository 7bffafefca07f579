"""An allocation of somebody's own: the deeper a block lies in its tower, the more of it goes."""

from typing import Literal

from prunus.allocation import Question, Scoring


class Depth(Scoring):
    """Scores fall with depth, and the budget is shared out by them."""

    method: Literal["depth"] = "depth"
    slope: float = 1.0
    """0 is uniform."""
    needs_batches = False
    by_batch = False

    def measure(self, question: Question) -> dict[str, float]:
        places: dict[str, dict[str, int]] = {}
        for matrix in question.chosen:
            blocks = places.setdefault(matrix.tower, {})
            blocks.setdefault(matrix.block, len(blocks))
        return {m.name: m.weights / (1 + self.slope * places[m.tower][m.block]) for m in question.chosen}
