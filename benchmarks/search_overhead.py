"""What a search step costs over a plain training step: `python -m benchmarks.search_overhead`.

Time: one process trains a BLIP of base size, step by step in turn with and without the search (A B A B …), so that a
drifting machine favours neither. Memory: one fresh process for each.
"""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.blip_base import blip_base, inputs
from prunus import Search, UPop
from prunus.cost import peak_memory
from prunus.evaluation import in_fresh_process

BATCH = 16


def step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor], search: Search | None
) -> None:
    model(**batch).loss.backward()
    if search is not None:
        search.step()
    optimizer.step()
    optimizer.zero_grad()


def memory(searching: bool) -> int:
    """Peak resident bytes of a process that takes two steps."""
    model, batch = blip_base().train(), inputs(BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    search = Search(model, UPop(ratio=0.5, interval=1), total_steps=100) if searching else None
    for _ in range(2):
        step(model, optimizer, batch, search)
    return peak_memory()


def time_ratio(pairs: int = 5) -> tuple[float, float, float]:
    """Median seconds of a plain step, of a search step at the middle of a search, and the median of their ratios."""
    model, batch = blip_base().train(), inputs(BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    search = Search(model, UPop(ratio=0.5, interval=1), total_steps=100)
    gates = search.gates
    plain, searched = [], []
    for pair in range(-1, pairs):
        search.steps_done = 50 + pair
        gates.set({name: torch.ones_like(gate) for name, gate in gates.values.items()})
        start = time.perf_counter()
        step(model, optimizer, batch, None)
        middle = time.perf_counter()
        search.gates.set(search.method.gates(search.masks, search.method.ratio_at(50, 100)))
        begin = time.perf_counter()
        step(model, optimizer, batch, search)
        if pair >= 0:
            plain.append(middle - start)
            searched.append(time.perf_counter() - begin)
    ratios = [b / a for a, b in zip(plain, searched, strict=True)]
    return statistics.median(plain), statistics.median(searched), statistics.median(ratios)


def main() -> None:
    plain, searched, ratio = time_ratio()
    print(f"BLIP base, batch {BATCH}, 224², fp32, {torch.get_num_threads()} threads")
    print("| | plain step | search step | ratio |\n| --- | --- | --- | --- |")
    print(f"| seconds, median | {plain:.2f} | {searched:.2f} | {ratio:.3f} |", flush=True)
    peaks = {mode: in_fresh_process(memory, mode == "search") for mode in ("plain", "search")}
    gigabytes = {mode: peak / 1e9 for mode, peak in peaks.items()}
    print(
        f"| peak memory, GB | {gigabytes['plain']:.2f} | {gigabytes['search']:.2f} | {peaks['search'] / peaks['plain']:.3f} |"
    )


if __name__ == "__main__":
    main()
