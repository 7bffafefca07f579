"""What a search step costs over a plain training step: `python -m benchmarks.search_overhead`.

For UPop, whose gates are read off the gradients of weights, and for gates that train, which keep the outputs that they multiply.
Time: one process trains a BLIP of base size, step by step in turn with and without the search (A B B A …), so that a
drifting machine favours neither. Memory: one fresh process for each.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from benchmarks.blip_base import blip_base, inputs
from prunus import Search, SearchMethod, Unified, UPop
from prunus.cost import peak_memory
from prunus.evaluation import in_fresh_process

METHODS: dict[str, SearchMethod] = {"UPop": UPop(ratio=0.5, interval=1), "trained gates": Unified(ratio=0.5)}
STEPS = 100


def step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor], search: Search | None
) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    model(**batch).loss.backward()
    if search is not None:
        search.step()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start


def memory(name: str, batch_size: int) -> int:
    """Peak resident bytes of a process that takes two steps; of plain ones where no method has the name."""
    model, batch = blip_base().train(), inputs(batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    search = Search(model, METHODS[name], STEPS, optimizer=optimizer) if name in METHODS else None
    for _ in range(2):
        step(model, optimizer, batch, search)
    return peak_memory()


def time_ratio(name: str, batch_size: int, pairs: int) -> tuple[float, float, float]:
    """Median seconds of a plain step, of a search step at the middle of a search, and the median of their ratios."""
    model, batch = blip_base().train(), inputs(batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    plain, searched = [], []
    for pair in range(-1, pairs):
        seconds = {}
        for searching in (True, False) if pair % 2 else (False, True):
            search = Search(model, METHODS[name], STEPS, optimizer=optimizer) if searching else None
            if search is not None:
                search.steps_done = STEPS // 2
                half = {unit.name: (torch.arange(unit.channels) % 2) * 0.7 + 0.3 for unit in search.units}
                search.gates.set(half)
            seconds[searching] = step(model, optimizer, batch, search)
            if search is not None:
                search.close()
        if pair >= 0:
            plain.append(seconds[False])
            searched.append(seconds[True])
    ratios = [b / a for a, b in zip(plain, searched, strict=True)]
    return statistics.median(plain), statistics.median(searched), statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--pairs", type=int, default=8)
    chosen = parser.parse_args()
    print(f"BLIP base, 224², fp32, {torch.get_num_threads()} threads\n")
    print("| method | batch | plain step, s | search step, s | ratio | peak memory, plain, GB | search, GB | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for batch_size in chosen.batches:
        without = in_fresh_process(memory, "", batch_size)
        for name in METHODS:
            plain, searched, ratio = time_ratio(name, batch_size, chosen.pairs)
            peak = in_fresh_process(memory, name, batch_size)
            print(
                f"| {name} | {batch_size} | {plain:.2f} | {searched:.2f} | {ratio:.3f} | {without / 1e9:.2f} | {peak / 1e9:.2f} | "
                f"{peak / without:.3f} |", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
