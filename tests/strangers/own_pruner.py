"""A pruner of somebody's own, with a statistic of its own: a weight matters as its part of the outputs that it feeds."""

from typing import Literal

from torch import Tensor

from prunus.unstructured import Scored, Seen, SquaredNorm, Statistic, Statistics


class OutputNorm(Statistic):
    """‖y_i‖² of every output, (rows,)."""

    source = "outputs"

    def accumulate(self, seen: Seen) -> None:
        self.total += seen.x.square().sum(0)


class Contribution(Scored):
    """|w_ij|·‖x_j‖ / ‖y_i‖ to a power, compared over the whole matrix."""

    method: Literal["contribution"] = "contribution"
    group: Literal["row", "matrix"] = "matrix"
    power: float = 0.5
    """How much an output's own size counts; 0 is Wanda."""
    needs = (SquaredNorm, OutputNorm)

    def scores(self, weight: Tensor, known: Statistics) -> Tensor:
        given, gives = known[SquaredNorm].value.sqrt(), known[OutputNorm].value.sqrt()
        return weight.abs() * given / gives.clamp_min(1e-12)[:, None] ** self.power
