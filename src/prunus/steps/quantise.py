"""Step `quantise`: fewer bits a weight, the last thing that is done to a model."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

from prunus.parallel import told_by_first
from prunus.quantise import Quantisation, Quantised, quantise_folder
from prunus.steps.bench import Bench
from prunus.steps.step import History, Sketch, Step


class QuantiseStep(Step):
    """Keeps the weights of linear layers in fewer bits; no other step can follow."""

    packs: ClassVar[bool] = True
    step: Literal["quantise"] = "quantise"
    method: Quantisation = Quantisation()
    """In how many bits, and which."""

    def check(self, before: Sketch) -> Sketch:
        self.method.config()
        return before

    def carry_out(self, bench: Bench) -> History:
        if not bench.is_done():
            told_by_first(partial(quantise_folder, bench.current, bench.output, self.method))
        return {"log": [], "said": str(Quantised.of(bench.output))}
