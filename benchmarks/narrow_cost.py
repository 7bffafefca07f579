"""What narrowing without training costs beside running the model: processor time, as a multiple of two passes through its blocks.

`python -m benchmarks.narrow_cost`: a LLaMA with random weights and SmolLM2-135M's widths, a few of its blocks. Two passes are what a sequential
walk takes that changes nothing: a block is run, and run again for what goes on. `--blocks`, `--sequences`, `--tokens`, `--batch-size`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prunus import Calibrated, Fluctuation, SurgeonCost, WalkOptions, anatomy, narrow
from prunus.unstructured import Walk

METHODS: dict[str, dict[str, Any]] = {
    "FLAP": {"score": Fluctuation(), "compensation": "none"},
    "FLAP, bias": {"score": Fluctuation(), "compensation": "bias"},
    "FLAP, refit": {"score": Fluctuation()},
    "OBS": {"score": SurgeonCost(), "compensation": "none"},
    "OBS, refit": {"score": SurgeonCost()},
}


def seconds(run: Callable[[], object]) -> float:
    """Of the processor, whatever else it does."""
    start = time.process_time()
    run()
    return time.process_time() - start


def two_passes(model: LlamaForCausalLM, batches: list[Any]) -> None:
    with Walk(model, batches, list(dict.fromkeys(unit.block for unit in anatomy(model)))) as walk:
        for stop in walk:
            for visit in stop.visits:
                stop.run(visit)
                stop.rest(visit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    given = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=given.blocks, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=256, attention_bias=True, mlp_bias=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    tokens = torch.randint(0, config.vocab_size, (given.sequences, given.tokens))
    batches = [{"input_ids": ids} for ids in tokens.split(given.batch_size)]
    two_passes(model, batches[:1])
    floor = seconds(partial(two_passes, model, batches))
    print(f"{given.sequences} × {given.tokens} tokens, {given.blocks} blocks: two passes {floor:.1f} s\n")
    print("| method | seconds | of two passes | not sequential |\n| --- | ---: | ---: | ---: |")
    for name, settings in METHODS.items():
        method, spent = Calibrated(ratio=0.3, **settings), list[float]()
        for sequential in (True, False):
            options = WalkOptions(progress=False, sequential=sequential)
            spent.append(seconds(partial(narrow, model, method, batches, options=options)))
        print(f"| {name} | {spent[0]:.1f} | {spent[0] / floor:.2f} | {spent[1] / floor:.2f} |", flush=True)


if __name__ == "__main__":
    main()
