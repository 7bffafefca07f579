"""What a model costs: parameters, multiply-accumulates, bytes, latency, memory."""

from __future__ import annotations

import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunus.anatomy import Anatomy, anatomy


@dataclass(frozen=True)
class Size:
    """Parameters and their bytes, in total and per tower. Shared parameters count once."""

    parameters: int
    bytes: int
    towers: dict[str, int]


def size(model: nn.Module, parts: Anatomy | None = None) -> Size:
    """Counts parameters; `parts` is the model's anatomy, where it has been read already."""
    parts = anatomy(model) if parts is None else parts
    return Size(parts.parameters, sum(p.numel() * p.element_size() for p in model.parameters()), parts.tower_parameters)


def _fused_attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """2 per multiply-accumulate of q kᵀ and of probabilities × v; (batch, heads, tokens, width) each."""
    batch, heads, tokens, width = query
    return 2 * batch * heads * tokens * key[-2] * (width + value[-1])


@torch.no_grad()
def multiply_accumulates(model: nn.Module, run: Callable[[], object], parts: Anatomy | None = None) -> dict[str, int]:
    """Multiply-accumulates of one call of `run`, which must use `model`: in total, and per tower.

    The counter of torch counts 2 per multiply-accumulate and nothing for the CPU's fused attention; both are mended
    here. Norms, activations and softmax are free. `parts` is the model's anatomy, where it has been read already.

    Returns:
        tower → multiply-accumulates, and "total". Work outside of every tower is in the total only.
    """
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={fused: _fused_attention_flops})
    towers: dict[str, int] = {}
    handles = []
    for tower, units in (anatomy(model) if parts is None else parts).towers.items():
        towers[tower] = 0
        for block in dict.fromkeys(unit.block for unit in units):
            module = model.get_submodule(block)

            def enter(*_: object, tower: str = tower) -> None:
                towers[tower] -= counter.get_total_flops()

            def leave(*_: object, tower: str = tower) -> None:
                towers[tower] += counter.get_total_flops()

            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:  # the counter's module tracker trips over BLIP-2's query tokens otherwise
            parameter.requires_grad_(False)
        with counter:
            run()
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()
    return {**{tower: flops // 2 for tower, flops in towers.items()}, "total": counter.get_total_flops() // 2}


@dataclass(frozen=True)
class Latency:
    """Seconds per call."""

    median: float
    low: float
    high: float
    runs: int


@torch.no_grad()
def latencies(runs: dict[str, Callable[[], object]], repeats: int = 5, warmup: int = 1) -> dict[str, Latency]:
    """Times several calls in turn, A B A B …, so that a drifting machine cannot favour one.

    Returns:
        name → seconds per call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(-warmup, repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: Latency(statistics.median(s), min(s), max(s), len(s)) for name, s in seconds.items()}


def peak_memory() -> int:
    """Peak resident memory of this process so far, in bytes.

    Linux's `getrusage` would also count the parent at the moment it forked, so the peak is read from /proc there.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def human(count: float, unit: str = "") -> str:
    """1234567 → "1.23M"."""
    if count <= 0:
        return f"0{unit}"
    step = min(int(math.log10(count) // 3), 4) if count >= 1 else 0
    return f"{count / 1000**step:.3g}{['', 'k', 'M', 'G', 'T'][step]}{unit}"
