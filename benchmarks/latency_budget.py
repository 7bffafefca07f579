"""Budgets in milliseconds against the clock: `python -m benchmarks.latency_budget`.

A ViT-S and a small LLaMA with random weights are narrowed to shares of their time, by the table that `max_milliseconds` measures. Then each narrow model is
timed beside the dense one, in turns, so that a machine that others use slows both: what is compared is their quotient. Nothing else should run.
"""

from __future__ import annotations

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification

from prunus import Calibrated, ChannelMagnitude, Everyone, narrow, score_channels
from prunus.cost import latencies

SHARES = (0.9, 0.75, 0.6)
VIT = ViTConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536, num_labels=10)
LLAMA = LlamaConfig(
    vocab_size=4000, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4
)  # fmt: skip


@torch.no_grad()
def main(repeats: int = 15) -> None:
    torch.manual_seed(0)
    cases = {
        "ViT-S, 4 images": (ViTForImageClassification(VIT).eval(), {"pixel_values": torch.randn(4, 3, 224, 224)}),
        "LLaMA, 256 tokens": (LlamaForCausalLM(LLAMA).eval(), {"input_ids": torch.randint(0, 4000, (1, 256))}),
    }
    print(
        f"{torch.get_num_threads()} threads\n\n| model | asked | predicted | measured | off by |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for name, (model, batch) in cases.items():
        magnitude = Calibrated(ratio=0.5, score=ChannelMagnitude(), scope=Everyone(), compensation="none")
        scores = score_channels(model, magnitude, [batch], latency=True)
        table = scores.header.latency
        assert table is not None
        for share in SHARES:
            method = magnitude.model_copy(update={"ratio": None, "max_milliseconds": share * table.total})
            small, plan = narrow(model, method, [batch], scores=scores)
            taken = latencies({"dense": lambda: model(**batch), "small": lambda: small(**batch)}, repeats)  # noqa: B023
            measured = taken["small"].median / taken["dense"].median
            predicted = table.predict(plan) / table.total
            print(
                f"| {name} | {share:.0%} | {predicted:.1%} | {measured:.1%} | {abs(predicted / measured - 1):.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
