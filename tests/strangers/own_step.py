"""A step of one's own: rounds the weights of the blocks to a few levels, row by row."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from prunus import PrunusError, matrices
from prunus.steps import Bench, History, Sketch, Step


class RoundStep(Step):
    """Rounds every row of every matrix to 2^bits − 1 levels, symmetric around zero."""

    step: Literal["round"] = "round"
    bits: int = Field(default=4, ge=2, le=8)
    """Of a weight."""

    def check(self, before: Sketch) -> Sketch:
        if not before.survey.matrices:
            raise PrunusError("bits", self.bits, "the model has no matrix to round")
        return before

    def carry_out(self, bench: Bench) -> History:
        model, levels = bench.load(), 2 ** (self.bits - 1) - 1
        for matrix in matrices(model):
            weight = matrix.view(model)
            scale = weight.abs().amax(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny) / levels
            weight.copy_((weight / scale).round() * scale)
        bench.save(model)
        return {"log": []}
