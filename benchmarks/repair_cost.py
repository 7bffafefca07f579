"""What masked adapters cost over plain ones: `python -m benchmarks.repair_cost`.

Time: one process trains a pruned LLaMA of about 110 M random parameters with both, step by step in turn. Memory: one fresh
process for each.
"""

from __future__ import annotations

import statistics
import time

import torch
import transformers as tf
from torch import nn

from prunus import Magnitude, WalkOptions, prune
from prunus.cost import peak_memory
from prunus.evaluation import in_fresh_process
from prunus.losses import own_loss
from prunus.repair.lora import Adapters
from prunus.repair.masks import zeros_of

SHAPE = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 16000,
}
TOKENS = (4, 256)


def adapted(masked: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**SHAPE))
    prune(model, Magnitude(sparsity=0.5), [batch()], options=WalkOptions(progress=False))
    adapters = Adapters(model, zeros_of(model), 8, 16.0, masked)
    parameters = [p for layer in adapters.layers.values() for p in (layer.linear.lora_A, layer.linear.lora_B)]
    return model.train(), torch.optim.AdamW(parameters, lr=1e-4)  # type: ignore[arg-type]


def batch() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(0, SHAPE["vocab_size"], TOKENS, generator=torch.Generator().manual_seed(1))}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: dict[str, torch.Tensor], bf16: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = own_loss(model, inputs)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def memory(masked: bool, bf16: bool) -> int:
    model, optimizer = adapted(masked)
    for _ in range(2):
        step(model, optimizer, batch(), bf16)
    return peak_memory()


def times(bf16: bool, pairs: int = 5) -> dict[str, float]:
    """Median seconds of a step of each, and the median of their ratios."""
    runs = {name: adapted(name == "masked") for name in ("plain", "masked")}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for pair in range(-1, pairs):
        for name, (model, optimizer) in runs.items():
            start = time.perf_counter()
            step(model, optimizer, batch(), bf16)
            if pair >= 0:
                seconds[name].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(seconds["plain"], seconds["masked"], strict=True)]
    return {**{name: statistics.median(found) for name, found in seconds.items()}, "ratio": statistics.median(ratios)}


def main() -> None:
    print(
        f"LLaMA of 110 M random parameters, rank 8, batch {TOKENS[0]} × {TOKENS[1]}, {torch.get_num_threads()} threads\n"
    )
    print("| | plain LoRA | masked LoRA | ratio |\n| --- | --- | --- | --- |")
    for kind in ("fp32", "bf16"):
        found = times(kind == "bf16")
        print(
            f"| seconds a step, {kind} | {found['plain']:.2f} | {found['masked']:.2f} | {found['ratio']:.3f} |",
            flush=True,
        )
        peaks = {name: in_fresh_process(memory, name == "masked", kind == "bf16") for name in ("plain", "masked")}
        ratio = peaks["masked"] / peaks["plain"]
        print(
            f"| peak memory of a process, GB, {kind} | {peaks['plain'] / 1e9:.2f} | {peaks['masked'] / 1e9:.2f} | {ratio:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
