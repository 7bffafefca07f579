"""Whether later blocks should see what pruned earlier ones compute, on three models: SmolLM2-135M, the demo's BLIP, stories260K.

`python -m benchmarks.sequential DATA`: Wanda and SparseGPT at .5 and .6 with `sequential=True` and `False`, means over draws of
calibration data, and how much longer the sequential walk takes. DATA holds wikitext2-valid.txt, wikitext2-test.txt and stories260k/. `make
demo` first. `--models`, `--draws`, `--sparsities`.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.subjects import Batches, Blip, SmolLM2
from prunus import SparseGPT, WalkOptions, Wanda, prune
from prunus.batches import default_device
from prunus.losses import own_loss


class Stories:
    """Perplexity of stories260K on stories that it tells itself, which is what it knows; calibrated on others of them."""

    headline, higher_is_better, bf16 = "perplexity", False, False

    def __init__(self, folder: Path, stories: int = 96, length: int = 128):
        self.dense = AutoModelForCausalLM.from_pretrained(folder).to(default_device()).eval()
        start = AutoTokenizer.from_pretrained(folder)("Once upon a time", return_tensors="pt")["input_ids"].to(
            default_device()
        )
        torch.manual_seed(0)
        with torch.no_grad():
            told = self.dense.generate(
                start.expand(stories, -1), do_sample=True, min_new_tokens=length, max_new_tokens=length
            )
        self.test, self.rest = told[: stories // 3], told[stories // 3 :]

    def calibration(self, draw: int) -> Batches:
        order = torch.randperm(len(self.rest), generator=torch.Generator().manual_seed(draw))
        return [{"input_ids": ids} for ids in self.rest[order[: len(order) // 2]].split(8)]

    @torch.no_grad()
    def evaluate(self, model: Any) -> float:
        return float(own_loss(model, {"input_ids": self.test}).exp())


def study(name: str, subject: Any, sparsities: Sequence[float], draws: int) -> None:
    print(f"\n{name}, {subject.headline}; dense {subject.evaluate(subject.dense):.2f}\n")
    print(
        "| pruner | sparsity | sequential | dense statistics | seconds, sequential / dense |\n| --- | --- | --- | --- | --- |"
    )
    for pruner in (Wanda, SparseGPT):
        for sparsity in sparsities:
            found: dict[bool, list[float]] = {True: [], False: []}
            seconds = {True: 0.0, False: 0.0}
            for draw in range(draws):
                batches = subject.calibration(draw)
                for sequential in (True, False):
                    model = copy.deepcopy(subject.dense)
                    options = WalkOptions(progress=False, bf16=subject.bf16, sequential=sequential)
                    start = time.perf_counter()
                    prune(model, pruner(sparsity=sparsity), batches, options=options)
                    seconds[sequential] += time.perf_counter() - start
                    found[sequential].append(subject.evaluate(model))
            cells = " | ".join(f"{statistics.mean(v):.2f} ± {statistics.pstdev(v):.2f}" for v in found.values())
            print(f"| {pruner().method} | {sparsity} | {cells} | {seconds[True] / seconds[False]:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--models", nargs="+", default=["stories", "smollm2", "blip"], choices=["stories", "smollm2", "blip"]
    )
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.5, 0.6])
    asked = parser.parse_args()
    for name in asked.models:
        subject = {
            "stories": lambda: Stories(asked.data / "stories260k"),
            "smollm2": lambda: SmolLM2(asked.data),
            "blip": Blip,
        }[name]()
        study(name, subject, asked.sparsities, asked.draws)


if __name__ == "__main__":
    main()
