"""One-shot pruning of a real language model: SmolLM2-135M (dequantised from the four-bit file of a pip package) on
WikiText-2, calibrated on 128 windows of 512 tokens of the validation text, perplexity on 128 windows of the test text.

`python -m benchmarks.smollm2 DATA`: the table, every pruner at .5, .6, 2:4 and 4:8.
`python -m benchmarks.smollm2 DATA --cost`: time and memory of Wanda and SparseGPT at .5, with later blocks seeing pruned earlier
ones and with all of them seeing the dense model, each in a process of its own, against two passes over the calibration data, which a
sequential walk cannot avoid.

DATA is a folder with wikitext2-valid.txt and wikitext2-test.txt.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from prunus import DSnoT, Magnitude, SparseGPT, WalkOptions, Wanda, load_model, prune_folder, text_batches
from prunus.batches import default_device
from prunus.cost import peak_memory
from prunus.evaluation import in_fresh_process
from prunus.models.smollm2 import smollm2
from prunus.storage import cache_folder

METHODS: dict[str, Any] = {
    "magnitude": Magnitude, "wanda": Wanda, "sparsegpt": SparseGPT, "dsnot": DSnoT,
    "dsnot, any sign": partial(DSnoT, same_sign=False),
}  # fmt: skip
BUDGETS: dict[str, dict[str, Any]] = {
    ".5": {"sparsity": 0.5}, ".6": {"sparsity": 0.6}, "2:4": {"pattern": "2:4"}, "4:8": {"pattern": "4:8"},
}  # fmt: skip
SAMPLES, LENGTH, BATCH = 128, 512, 4


def model_folder() -> Path:
    return smollm2(cache_folder() / "smollm2-135m")


def calibration(data: Path) -> list[dict[str, torch.Tensor]]:
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    return text_batches(tokenizer, (data / "wikitext2-valid.txt").read_text(), SAMPLES, LENGTH, BATCH)


def prune_here(data: str, output: str, method: str, budget: str, sequential: bool) -> dict[str, float]:
    """In a process of its own: prunes, and says what it took."""

    batches = calibration(Path(data))
    start = time.perf_counter()
    plan = prune_folder(
        model_folder(),
        output,
        METHODS[method](**BUDGETS[budget]),
        batches,
        options=WalkOptions(bf16=True, progress=False, sequential=sequential),
        device=default_device(),
    )
    return {"seconds": time.perf_counter() - start, "peak": peak_memory(), "sparsity": plan.sparsity}


def prune_elsewhere(data: Path, output: Path, method: str, budget: str, sequential: bool = True) -> dict[str, float]:
    shutil.rmtree(output, ignore_errors=True)
    found: dict[str, float] = in_fresh_process(prune_here, str(data), str(output), method, budget, sequential)
    return found


def perplexity(data: Path, folder: Path, windows: int) -> float:
    """Under bf16 autocast, the loss in fp32."""
    from prunus.tasks.text import Text

    task = Text(tokenizer=str(model_folder()), evaluation=data / "wikitext2-test.txt", length=LENGTH, bf16=True)
    return task.evaluate(load_model(folder).to(default_device()), windows, progress=False)["perplexity"]


def table(data: Path, scratch: Path, windows: int, methods: Sequence[str], budgets: Sequence[str]) -> None:
    print(
        f"dense: perplexity {perplexity(data, model_folder(), windows):.2f} on {windows} windows of {LENGTH} tokens\n",
        flush=True,
    )
    print("| pruner | " + " | ".join(budgets) + " |", flush=True)
    print("| --- |" + " --- |" * len(budgets), flush=True)
    for method in methods:
        cells = []
        for budget in budgets:
            prune_elsewhere(data, scratch / "out", method, budget)
            cells.append(f"{perplexity(data, scratch / 'out', windows):.2f}")
        print(f"| {method} | " + " | ".join(cells) + " |", flush=True)


def cost(data: Path, scratch: Path) -> None:
    model, batches = load_model(model_folder()).eval(), calibration(data)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    activations = SAMPLES * LENGTH * model.config.hidden_size * 4
    start = time.perf_counter()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        for batch in batches:
            model.base_model(**batch, use_cache=False)
    two_passes = 2 * (time.perf_counter() - start)
    del model
    print(
        f"two passes of the blocks, bf16: {two_passes:.1f} s; weights + activations: {(weights + activations) / 1e9:.2f} GB\n"
    )
    print(
        "| pruner | statistics of | seconds | / two passes | peak GB | / (weights + activations) | perplexity, 64 windows |\n"
        "| --- | --- | --- | --- | --- | --- | --- |"
    )
    for method, sequential in itertools.product(("wanda", "sparsegpt"), (True, False)):
        found = prune_elsewhere(data, scratch / "out", method, ".5", sequential)
        print(
            f"| {method} | {'pruned blocks' if sequential else 'the dense model'} | {found['seconds']:.1f} | {found['seconds'] / two_passes:.2f} | {found['peak'] / 1e9:.2f} "
            f"| {found['peak'] / (weights + activations):.2f} | {perplexity(data, scratch / 'out', 64):.2f} |", flush=True,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--pruners", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--cost", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prunus-smollm2-") as scratch:
        if asked.cost:
            cost(asked.data, Path(scratch))
        else:
            table(asked.data, Path(scratch), asked.windows, asked.pruners, asked.budgets)


if __name__ == "__main__":
    main()
