"""What a model costs and what of that each channel has a part in: what budgets in absolute numbers are held against."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunus.anatomy import Anatomy, Unit, linears
from prunus.cost import channel_macs
from prunus.errors import PrunusError
from prunus.modules import evaluating
from prunus.parallel import agreeing, has_shards, of_first
from prunus.structured.latency import LatencyTable, measure_latency
from prunus.structured.selection import Cost, cost_of
from prunus.typed import Count, Typed

Example = Callable[[], object]
"""One call of the model."""


class Price(NamedTuple):
    """What the whole model costs in some unit, and what leaves with the channels of each unit."""

    total: float
    channel: Mapping[str, Cost]


class Storage(Typed):
    """How a model is stored and used, where a budget is in bytes."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type in which weights, and cached keys and values, are held; by default, that of each."""
    cache_tokens: int = Field(default=0, ge=0, le=1 << 40)
    """Tokens whose keys and values are cached, of each sequence; counted beside the weights."""
    cache_batch: Count = 1
    """Sequences that are cached."""

    @property
    def itemsize(self) -> int | None:
        """Bytes of a number; None where it is that of each."""
        return None if self.dtype is None else getattr(torch, self.dtype).itemsize


class Cached(Typed):
    """What one attention keeps of every token in a key-value cache."""

    unit: str
    """Empty, where it is none that is narrowed."""
    numbers: int
    """Of one token of one sequence."""
    per_channel: float
    """Those of them that leave with a channel."""
    itemsize: int
    """Bytes of one as it is."""
    window: int | None = None
    """Tokens that are kept at most."""

    def bytes(self, numbers: float, storage: Storage) -> float:
        """So many numbers of every token that is cached."""
        tokens = storage.cache_tokens if self.window is None else min(storage.cache_tokens, self.window)
        return numbers * tokens * storage.cache_batch * (storage.itemsize or self.itemsize)


class Whole:
    """A model, to be priced.

    Args:
        parts: its anatomy.
        model: itself, with weights or on the meta device; without it parameters alone can be counted.
        example: one call of it, on which multiply-accumulates, caches and milliseconds are counted.
    """

    def __init__(self, parts: Anatomy, model: nn.Module | None = None, example: Example | None = None):
        self.parts, self.model, self.example = parts, model, example

    def parameters(self, units: Sequence[Unit]) -> Price:
        """Of the whole model, shared ones once."""
        return Price(
            self.parts.parameters, {unit.name: float(unit.channel_cost * (1 + len(unit.mirrors))) for unit in units}
        )

    def macs(self, units: Sequence[Unit]) -> Price:
        """Multiply-accumulates of the example.

        Raises:
            PrunusError: there is none, or it calls none of the units.
        """
        model, example = self._called("max_macs")
        with evaluating(model), torch.random.fork_rng():
            counted = channel_macs(model, example, units)
        if not any(counted.channel.values()):
            raise PrunusError(
                "example", counted.total, "it does not call this model, or no unit that is searched; give lambda: model(**batch)"
            )  # fmt: skip
        return Price(counted.total, counted.channel)

    def bytes(self, units: Sequence[Unit], storage: Storage) -> Price:
        """Of the weights in safetensors files, with their headers, and of the cache.

        Raises:
            PrunusError: a cache is counted, and there is no example, or it fills none.
        """
        weights = self.weights(units, storage)
        if not storage.cache_tokens:
            return weights
        total, channel = weights.total, {name: cost_of(cost, 1) for name, cost in weights.channel.items()}
        for one in self.cached(units):
            total += one.bytes(one.numbers, storage)
            if one.unit:
                channel[one.unit] += one.bytes(one.per_channel, storage)
        return Price(total, channel)

    def weights(self, units: Sequence[Unit], storage: Storage) -> Price:
        """Bytes of the weights in safetensors files, with their headers."""
        model = self._there("max_bytes")
        names = {id(tensor): name for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
        stored = {names[id(tensor)]: tensor for tensor in model.state_dict(keep_vars=True).values()}
        total = sum(tensor.numel() * _itemsize(tensor, storage) for tensor in stored.values())
        channel = {unit.name: _bytes_of_channel(model, unit, storage) * (1 + len(unit.mirrors)) for unit in units}
        return Price(total + _header(stored), channel)

    def cached(self, units: Sequence[Unit], needed: bool = True) -> tuple[Cached, ...]:
        """What the attentions keep of every token.

        Raises:
            PrunusError: there is no example, or it fills no cache, where one is needed.
        """
        model, example = self._called("storage.cache_tokens")
        with evaluating(model), torch.random.fork_rng(), torch.no_grad(), _watched(model, units) as found:
            example()
        if needed and not found:
            raise PrunusError(
                "storage.cache_tokens", None, "the example fills no key-value cache: the model is no decoder, or use_cache is off; leave it out"
            )  # fmt: skip
        return tuple(found.values())

    def milliseconds(self, units: Sequence[Unit], align: int) -> LatencyTable:
        """Of the example, on the machine of the first process: no two measure alike.

        Raises:
            PrunusError: there is none, or it calls none of the units.
        """
        model, example = self._called("max_milliseconds")
        if has_shards(model):
            raise PrunusError(
                "max_milliseconds",
                None,
                "no process has all of the weights, to be timed; take another budget, or search before fully_shard",
            )
        with agreeing():
            return of_first(measure_latency(model, self.parts, units, example, align))

    def _there(self, what: str) -> nn.Module:
        if self.model is None:
            raise PrunusError("model", None, f"{what} is counted on a model; give one")
        return self.model

    def _called(self, what: str) -> tuple[nn.Module, Example]:
        if self.example is None:
            raise PrunusError(
                "example", None, f"{what} is counted on a call of the model; give one: example=lambda: model(**batch)"
            )
        return self._there(what), self.example


def _itemsize(tensor: Tensor, storage: Storage) -> int:
    return (storage.itemsize if tensor.is_floating_point() else None) or tensor.element_size()


def _bytes_of_channel(model: nn.Module, unit: Unit, storage: Storage) -> float:
    weights = [(site, layer.weight) for site, layer in linears(model, unit)]
    weights += [(site, model.get_parameter(f"{unit.path}.{site.linear}.weight")) for site in unit.norms]
    return sum(unit.features_per_channel(site) * site.features * _itemsize(weight, storage) for site, weight in weights)


def _header(stored: Mapping[str, Tensor]) -> int:
    """Bytes of a safetensors header at most, with its length and padding. Numbers of narrower tensors are no longer; names in files may
    be, and a parameter that holds all experts is written as up to two of each."""
    end = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    total = LONGER
    for name, tensor in stored.items():
        entry = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [end, end]}
        written = 2 * len(tensor) if tensor.ndim == 3 else 1
        total += written * (len(json.dumps({name: entry}, separators=(",", ":"))) + LONGER)
    return total


LONGER = 48
"""Bytes by which a name in files is longer than one in the model, at most."""


@contextmanager
def _watched(model: nn.Module, units: Sequence[Unit]) -> Iterator[dict[tuple[int, int], Cached]]:
    """(cache, layer) → what an attention keeps of a token, of the calls within the context."""
    from transformers.cache_utils import Cache

    found: dict[tuple[int, int], Cached] = {}
    caches: list[Any] = []  # held, so that no other one gets the id of one that is gone
    inside: list[Unit] = []
    handles: list[RemovableHandle] = []
    for unit in (unit for unit in units if unit.is_attention):
        for path in (unit.path, *unit.twins):
            module = model.get_submodule(path)
            handles.append(module.register_forward_pre_hook(lambda *_, unit=unit: inside.append(unit)))
            handles.append(module.register_forward_hook(lambda *_: inside.pop() and None, always_call=True))
    update = Cache.update

    def watching(self: Any, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> Any:
        given = update(self, keys, values, layer, *args, **kwargs)
        window = getattr(self.layers[layer], "sliding_window", None)
        caches.append(self)
        found.setdefault((id(self), layer), _cached(inside[-1] if inside else None, keys, values, window))
        return given

    Cache.update = watching
    try:
        yield found
    finally:
        Cache.update = update
        for handle in handles:
            handle.remove()


def _cached(unit: Unit | None, keys: Tensor, values: Tensor, window: int | None) -> Cached:
    of_keys, of_values = (x.shape[1] * x.shape[-1] for x in (keys, values))
    narrowed = 0
    if unit is not None:
        narrows_queries = sum(site.repeats for site in unit.producers) > unit.consumer.repeats
        narrowed = of_keys + of_values if narrows_queries else of_values
    return Cached(
        unit="" if unit is None else unit.name, numbers=of_keys + of_values, itemsize=values.element_size(), window=window,
        per_channel=narrowed / unit.channels if unit is not None else 0.0,
    )  # fmt: skip
