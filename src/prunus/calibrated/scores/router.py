"""REAP's score of whole experts: how much of what it gives the router lets through (Lasby et al., 2025)."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from prunus.calibrated.scores.score import Score
from prunus.unstructured import Statistics


class RouterWeighted(Score):
    """Mean of g ‖f(x)‖ over the tokens x that are routed to an expert, g the router's weight and f(x) what the expert gives.

    Experts leave as a whole, with the router's rows for them; tokens go to the best of those that stay. Nothing makes up for them, so
    this goes with `compensation="none"`. An expert that no token is sent to is worth nothing.
    """

    score: Literal["router"] = "router"
    whole_experts: ClassVar[bool] = True

    def of_matrix(self, weight_RC: Tensor, columns_NF: Tensor, inputs: Statistics) -> Tensor:
        """Never asked."""
        raise NotImplementedError
