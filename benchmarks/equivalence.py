"""Masked against extracted, over every family: `python -m benchmarks.equivalence` prints the table of the docs."""

from __future__ import annotations

import torch
import transformers
from tests.families import FAMILIES, build
from tests.test_equivalence import deviation, masked, outputs, random_plan

from prunus import anatomy, extract

SEEDS = 5


def main() -> None:
    transformers.logging.set_verbosity_error()
    print("| family | units | tensors compared | largest deviation | generation |\n| --- | --- | --- | --- | --- |")
    for name in FAMILIES:
        worst, tensors, agreed, units = 0.0, 0, "–", ()
        for seed in range(SEEDS):
            case = build(name, seed)
            plan = random_plan(case.model, seed)
            small = extract(case.model, plan)
            units = anatomy(case.model).units
            masked(case.model, plan)
            with torch.no_grad():
                wide, narrow = outputs(case.model(**case.inputs)), outputs(small(**case.inputs))
            worst, tensors = max(worst, deviation(wide, narrow)), len(wide)
            if case.generate is not None and agreed != "differs":
                arguments = {**case.generate, "do_sample": False}
                same = torch.equal(case.model.generate(**arguments), small.generate(**arguments))
                agreed = "identical" if same else "differs"
        kinds = ", ".join(dict.fromkeys(unit.component for unit in units))
        print(f"| {name} | {kinds} | {tensors} | {worst:.1e} | {agreed} |", flush=True)


if __name__ == "__main__":
    main()
