"""Step `quantise`: fewer bits a weight, the last thing that is done to a model."""

from __future__ import annotations

from typing import ClassVar, Literal

from prunus.quantise import Quantisation, quantise_folder
from prunus.steps.bench import Bench
from prunus.steps.step import History, Sketch, Step
from prunus.storage import write_text


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
        told = bench.folder / "quantised.txt"
        if not bench.output.exists() or not told.exists():
            found = quantise_folder(bench.current, bench.output, self.method)
            write_text(told, str(found))
        return {"log": [], "said": told.read_text()}
