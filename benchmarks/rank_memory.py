"""What a process needs in memory, and what it sends and receives, by calculation: `python -m benchmarks.rank_memory [CONFIG…]`.

For language models of 7, 13 and 70 billion parameters in LLaMA's shapes, or for any config.json, on 1, 8 and 16 devices. Nothing has weights
here. Activations come on top, as in training without prunus. `tests/in_processes.py` holds the formulas against measured bytes of a small model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from prunus import anatomy
from prunus.anatomy import Anatomy, linears, survey
from prunus.checkpoint import bare_model

GB = 1e9
PROCESSES = (1, 8, 16)
SOLVER = 24
"""Bytes for each number of a Gram matrix while it is factored: its mean, a damped copy, the factor, both ways round, and the inverse."""
LLAMA = {
    "7 B": LlamaConfig(),
    "13 B": LlamaConfig(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40),
    "70 B": LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8
    ),
}


@dataclass(frozen=True)
class Sizes:
    """What the formulas are made of."""

    parameters: int
    block: int
    """Parameters of the largest block."""
    matrices: int
    """Weights of that block's matrices."""
    blocks: int
    """Parameters of all blocks."""
    count: int
    """How many blocks there are."""
    columns: int
    """Numbers of one statistic a column, over the different inputs of the largest block."""
    gram: int
    """Numbers of its Gram matrices."""
    widest: int
    """Numbers of the largest of them, of which the solver makes factors and inverses."""
    channels: int
    """Of all units."""

    @classmethod
    def of(cls, model: nn.Module, parts: Anatomy | None = None) -> Sizes:
        """Reads a model, on any device. Producers of a unit share their input, as q, k and v do, or gate and up."""
        parts = anatomy(model) if parts is None else parts
        paths = dict.fromkeys(matrix.block for matrix in survey(model, parts=parts).matrices)
        sizes = {path: sum(p.numel() for p in model.get_submodule(path).parameters()) for path in paths}
        largest = max(sizes, key=lambda path: sizes[path])
        inputs: list[int] = []
        for unit in parts:
            if unit.block == largest:
                pairs = [layer for _, layer in linears(model, unit)]
                inputs += [pairs[0].weight.shape[1], pairs[-1].weight.shape[1]]
        return cls(
            parameters=sum(p.numel() for p in model.parameters()),
            block=sizes[largest],
            matrices=sum(m.weights for m in survey(model, parts=parts).matrices if m.block == largest),
            blocks=sum(sizes.values()),
            count=len(sizes),
            columns=sum(inputs),
            gram=sum(size**2 for size in inputs),
            widest=max(inputs) ** 2,
            channels=sum(unit.channels for unit in parts),
        )

    @property
    def rest(self) -> int:
        """Parameters outside of the blocks."""
        return self.parameters - self.blocks


def share(processes: int) -> float:
    """Of a tensor that one process sends while all gather or scatter it."""
    return (processes - 1) / processes


def memory(sizes: Sizes, processes: int) -> dict[str, float]:
    """Bytes of one process, without activations. Training is in fp32 with AdamW: 16 bytes a parameter; the walk in bf16."""
    whole = (
        8 * sizes.rest + 12 * sizes.block
    )  # what FSDP2 makes whole: the root with its gradients, a block with its own, and the next
    return {
        "search, DDP": 16 * sizes.parameters,
        "search, FSDP2": 16 * sizes.parameters / processes + (whole if processes > 1 else 0),
        "walk, Wanda": 2 * sizes.parameters + 4 * sizes.columns,
        "walk, SparseGPT": 2 * sizes.parameters + 4 * sizes.gram + SOLVER * sizes.widest,
        "walk from disk, SparseGPT": 2 * max(sizes.block, sizes.rest) + 4 * sizes.gram + SOLVER * sizes.widest,
    }


def exchanged(sizes: Sizes, processes: int) -> dict[str, float]:
    """Bytes that one process sends in a search step, or in the walk of the largest block."""
    once, twice = share(processes), 2 * share(processes)
    return {
        "search step, DDP: gradients": twice * 4 * sizes.parameters,
        "search step, FSDP2: weights twice, gradients once": 3 * once * 4 * sizes.parameters,
        "search step, FSDP2: of that for the search, channel sums": twice * 4 * sizes.channels,
        "walk, a block, Wanda: sums": twice * 4 * sizes.columns,
        "walk, a block, SparseGPT: Gram matrices": twice * 4 * sizes.gram,
        "walk, a block: pruned weights": once * 2 * sizes.matrices,
    }


def table(title: str, sizes: Sizes, counts: Sequence[int] = PROCESSES) -> str:
    """Both, in Markdown."""
    head = f"| {title}: {sizes.parameters / GB:.2f} B parameters | " + " | ".join(str(count) for count in counts) + " |"
    rows = [head, "| --- " * (len(counts) + 1) + "|"]
    for what, unit, scale in ((memory, "GB", 1e9), (exchanged, "MB sent", 1e6)):
        found = {count: what(sizes, count) for count in counts}
        rows += [
            f"| {name}, {unit} | " + " | ".join(f"{found[count][name] / scale:,.2f}" for count in counts) + " |"
            for name in found[counts[0]]
        ]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="*", type=Path, help="folders or config files; by default LLaMA's shapes")
    given = parser.parse_args()
    with torch.device("meta"):
        models = (
            {str(path): bare_model(str(path)) for path in given.configs}
            if given.configs
            else {name: AutoModelForCausalLM.from_config(config) for name, config in LLAMA.items()}
        )
    for name, model in models.items():
        print(table(name, Sizes.of(model)), end="\n\n")


if __name__ == "__main__":
    main()
