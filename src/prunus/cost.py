"""What a model costs: parameters, multiply-accumulates, bytes, latency, memory."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from prunus.anatomy import Anatomy, Layer, Site, Unit, anatomy, linears

resource: Any
try:
    import resource
except ImportError:  # Windows
    resource = None


@dataclass(frozen=True)
class Size:
    """Parameters and their bytes, in total and per tower. Shared parameters count once."""

    parameters: int
    bytes: int
    towers: dict[str, int]


def size(model: nn.Module, parts: Anatomy | None = None) -> Size:
    """Counts parameters; `parts` is the model's anatomy, where it has been read already."""
    parts = anatomy(model) if parts is None else parts
    return Size(parts.parameters, stored_bytes(model), parts.tower_parameters)


def stored_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters as they are kept: of a quantised weight its whole numbers and their scales."""
    return sum(part.numel() * part.element_size() for weight in model.parameters() for part in parts_of(weight))


def parts_of(weight: Tensor) -> list[Tensor]:
    """The tensors that a weight is kept as: itself, or what a packed one (a tensor subclass, as torchao's) is made of."""
    if type(weight) in (Tensor, nn.Parameter) or not hasattr(weight, "__tensor_flatten__"):
        return [weight.detach()]
    return [part for name in weight.__tensor_flatten__()[0] for part in parts_of(getattr(weight, name))]


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
    counter, towers = _counter(), {}
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
    total = _count(model, run, counter, handles)
    return {**{tower: flops // 2 for tower, flops in towers.items()}, "total": total}


def _counter(more: Mapping[Any, Callable[..., int]] | None = None) -> FlopCounterMode:
    """A counter of 2 per multiply-accumulate, and of `more`: operation → its count, of the shapes of what it is given."""
    own: dict[Any, Callable[..., int]] = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _fused_attention_flops,
        torch.ops.aten._grouped_mm: _grouped_flops,
    }
    return FlopCounterMode(display=False, custom_mapping={**own, **(more or {})})


def _grouped_flops(tokens: Sequence[int], weight: Sequence[int], *_: object, **__: object) -> int:
    """Of experts: every row of the tokens, (S, K), is multiplied with one of the matrices, (E, K, N)."""
    return 2 * math.prod(tokens) * weight[-1]


@torch.no_grad()
def published_flops(model: nn.Module, run: Callable[[], object]) -> int:
    """What one call of `run`, which must use `model`, costs as the papers' counter (fvcore) counts: 1 per multiply-accumulate, 5 per
    element that a layer norm is given, 4 per element that bilinear resizing gives."""
    aten = torch.ops.aten
    more: dict[Any, Callable[..., int]] = {
        aten.native_layer_norm: _layer_norm_flops, aten.upsample_bilinear2d: _bilinear_flops,
    }  # fmt: skip
    return _count(model, run, _counter(more), [])


def _layer_norm_flops(shape: Sequence[int], *_: object, **__: object) -> int:
    return 2 * 5 * math.prod(shape)


def _bilinear_flops(*_: object, out_shape: Sequence[int], **__: object) -> int:
    return 2 * 4 * math.prod(out_shape)


def _count(
    model: nn.Module, run: Callable[[], object], counter: FlopCounterMode, handles: Sequence[RemovableHandle]
) -> int:
    """Multiply-accumulates of one call; the hooks are taken off afterwards."""
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
    return counter.get_total_flops() // 2


@dataclass(frozen=True)
class ChannelMacs:
    """Multiply-accumulates of one call."""

    total: int
    """Of the whole model."""
    channel: dict[str, float]
    """Unit → those that leave with one of its channels."""


@torch.no_grad()
def channel_macs(model: nn.Module, run: Callable[[], object], units: Sequence[Unit]) -> ChannelMacs:
    """Counts one call of `run`, which must use `model`: in total, and what each channel of `units` has a part in.

    That is its rows and columns of the linear layers, for every position that goes through them, and in attentions its part of
    q kᵀ and of probabilities × v.
    """
    counter = _counter()
    places = [
        _UnitMacs(model, unit, path, counter) for unit in units for path in (unit.path, *unit.twins, *unit.mirrors)
    ]
    total = _count(model, run, counter, [handle for place in places for handle in place.handles])
    channel = {unit.name: 0.0 for unit in units}
    for place in places:
        channel[place.unit.name] += place.macs
    return ChannelMacs(total, channel)


class _UnitMacs:
    """Counts what one channel of a unit has a part in, at one of the places where the unit stands."""

    def __init__(self, model: nn.Module, unit: Unit, path: str, counter: FlopCounterMode):
        self.unit, self.macs, self._counter = unit, 0.0, counter
        self._before = 0
        """What had been counted when the last producer was done: until the consumer begins, the products of an attention follow."""
        *producers, (_, consumer) = linears(model, unit, path)
        if consumer.is_fused:  # all that its module multiplies is of some channel
            self.handles = [
                consumer.owner.register_forward_pre_hook(self._begins), consumer.owner.register_forward_hook(self._ends)
            ]  # fmt: skip
            return
        self.handles = [
            layer.owner.register_forward_hook(partial(self._produced, site, layer)) for site, layer in producers
        ]
        self.handles.append(consumer.owner.register_forward_pre_hook(self._multiplied))
        self.handles.append(consumer.owner.register_forward_hook(self._consumed))

    def _begins(self, experts: nn.Module, inputs: object) -> None:
        self._before = self._counter.get_total_flops()

    def _ends(self, experts: nn.Module, inputs: object, output: Tensor) -> None:
        self.macs += (self._counter.get_total_flops() - self._before) / 2 / self.unit.channels

    def _produced(self, site: Site, layer: Layer, linear: nn.Module, inputs: object, output: Tensor) -> None:
        fan_in = layer.features(layer.weight).shape[1]
        self.macs += output.numel() / output.shape[-1] * fan_in * self.unit.features_per_channel(site)
        self._before = self._counter.get_total_flops()

    def _multiplied(self, linear: nn.Module, inputs: object) -> None:
        if self.unit.is_attention:
            narrows_queries = sum(site.repeats for site in self.unit.producers) > self.unit.consumer.repeats
            both = (self._counter.get_total_flops() - self._before) / 2 / self.unit.channels
            self.macs += both if narrows_queries else both / 2

    def _consumed(self, linear: nn.Module, inputs: object, output: Tensor) -> None:
        consumer = self.unit.consumer
        self.macs += output.numel() / output.shape[-1] * consumer.features * self.unit.features_per_channel(consumer)


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

    Linux's `getrusage` would also count the parent at the moment it forked, so the peak is read from /proc where there is one, and from
    psutil, which accelerate brings along, where there is no `getrusage`.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    if resource is None:
        return int(psutil.Process().memory_info().peak_wset)  # Windows
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def human(count: float, unit: str = "") -> str:
    """1234567 → "1.23M"."""
    if count <= 0:
        return f"0{unit}"
    step = min(int(math.log10(count) // 3), 4) if count >= 1 else 0
    return f"{count / 1000**step:.3g}{['', 'k', 'M', 'G', 'T'][step]}{unit}"
