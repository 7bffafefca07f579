"""Budgets in bytes and milliseconds: what is counted is what is there, and every limit is met to within a channel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import Cache, EncoderDecoderCache

from prunus import PrunusError, Search, anatomy, extract
from prunus.structured import AtEnd, Chance, Everyone, Storage, Structured, Whole, WithinUnit, latency
from prunus.structured.latency import LatencyTable, measure_latency
from prunus.structured.selection import cost_of, dearest
from tests.families import build

STORED, CACHING, TIMED = ("gpt2", "t5", "vit", "mixtral"), ("gemma2", "qwen3", "t5", "vit"), ("gpt2", "t5", "vit")
"""Of the families, those that differ in what is counted; all others pass, too."""


def example(model: Any, case: Any) -> Callable[[], Any]:
    return lambda: model(**case.inputs)


def searched(case: Any, **budget: Any) -> tuple[Any, Any]:
    """The narrow model and its plan, of channels by chance."""
    method = Structured(**budget, importance=Chance(), scope=Everyone(), closing=AtEnd())
    search = Search(case.model, method, 1, example=example(case.model, case))
    search.step()
    search.close()
    return extract(case.model, search.plan()), search.plan()


def on_disk(model: Any, folder: Path) -> int:
    model.save_pretrained(folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def headers(model: Any) -> int:
    """By how much the header of a file may be counted too long: by the length of some names."""
    return sum(100 * (2 * len(x) if x.ndim == 3 else 1) for x in model.state_dict().values())


@pytest.mark.parametrize("name", STORED)
def test_a_budget_in_bytes_is_hit_to_within_a_channel_of_the_file(name: str, tmp_path: Path) -> None:
    case = build(name, 10)
    parts = anatomy(case.model)
    units, whole = parts.select(("*",)), Whole(parts, case.model)
    counted = whole.bytes(units, Storage())
    spare = headers(case.model)
    assert 0 <= counted.total - on_disk(case.model, tmp_path / "dense") <= spare
    for dtype in (None, "bfloat16"):
        price = whole.bytes(units, Storage(dtype=dtype))
        prunable = sum(cost_of(price.channel[unit.name], unit.channels) for unit in units)
        most = int(price.total - 0.4 * prunable)
        small, _ = searched(case, max_bytes=most, storage=Storage(dtype=dtype))
        found = on_disk(small if dtype is None else small.to(torch.bfloat16), tmp_path / str(dtype))
        assert found <= most
        left = Whole(anatomy(small), small).bytes(anatomy(small).units, Storage(dtype=dtype)).total
        assert 0 <= most - left <= dearest(price.channel.values()) + spare


@pytest.mark.parametrize("name", CACHING)
def test_a_budget_with_a_cache_counts_what_the_cache_holds(name: str) -> None:
    case = build(name, 10)
    with torch.no_grad():
        cache = getattr(case.model(**case.inputs), "past_key_values", None)
    parts = anatomy(case.model)
    units, storage = parts.select(("*",)), Storage(cache_tokens=1000, cache_batch=3)
    whole = Whole(parts, case.model, example(case.model, case))
    if cache is None:
        if case.generate is None:
            with pytest.raises(PrunusError, match=r"storage\.cache_tokens"):
                whole.bytes(units, storage)
        return
    price = whole.bytes(units, storage)
    held = price.total - whole.weights(units, storage).total
    assert held == pytest.approx(bytes_of_a_token(cache, 1000) * 3)
    most = int(price.total - 0.4 * sum(cost_of(price.channel[unit.name], unit.channels) for unit in units))
    small, _ = searched(case, max_bytes=most, storage=storage)
    with torch.no_grad():
        narrow = bytes_of_a_token(small(**case.inputs).past_key_values, 1000) * 3
    left = narrow + Whole(anatomy(small), small).weights(anatomy(small).units, storage).total
    assert 0 <= most - left <= dearest(price.channel.values()) + headers(case.model)


def bytes_of_a_token(cache: Any, tokens: int) -> int:
    """Bytes of so many tokens of one sequence in the caches that a model has returned."""
    halves = (
        [cache.self_attention_cache, cache.cross_attention_cache] if isinstance(cache, EncoderDecoderCache) else [cache]
    )
    total = 0
    for half in halves:
        assert isinstance(half, Cache)
        for layer in half.layers:
            if layer.keys is not None and layer.keys.numel():
                width = sum(x.shape[1] * x.shape[-1] * x.element_size() for x in (layer.keys, layer.values))
                total += width * min(tokens, getattr(layer, "sliding_window", None) or tokens)
    return total


PRODUCTS = (torch.nn.functional.linear, torch.addmm, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)


class Clock(TorchFunctionMode):
    """Time by which every linear map takes a microsecond a multiply-accumulate, and any other operation one."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            self.now += given.numel() * args[-2].shape[-1] / 1000
        self.now += 0.001
        return given


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    with Clock() as now:
        monkeypatch.setattr(latency, "_now", lambda: now.now)
        yield now


@pytest.mark.parametrize("name", TIMED)
def test_a_budget_in_milliseconds_is_hit_to_within_a_channel(name: str, clock: Clock) -> None:
    case = build(name, 10)
    parts = anatomy(case.model)
    units, state = parts.select(("*",)), case.model.state_dict()
    table = measure_latency(case.model, parts, units, example(case.model, case), repeats=1)
    assert all(torch.equal(tensor, state[key]) for key, tensor in case.model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in case.model.modules())
    costs = table.costs(units)
    most = table.total - 0.4 * sum(cost_of(costs[unit.name], unit.channels) for unit in units)
    small, plan = searched(case, max_milliseconds=most)
    assert 0 <= most - table.predict(plan) + 1e-9 <= dearest(costs.values()) + 1e-9
    with torch.no_grad():
        start = clock.now
        small(**case.inputs)
    assert clock.now - start == pytest.approx(table.predict(plan), rel=0.1)


def test_a_table_is_read_between_its_widths() -> None:
    table = LatencyTable(total=10, units={"mlp": {1: 1.0, 5: 3.0, 10: 3.0}})
    assert [table.of("mlp", width) for width in (0, 1, 3, 5, 7, 10)] == [1, 1, 2, 3, 3, 3]
    (unit, *_) = anatomy(build("llama", 2).model).units
    costs = table.model_copy(update={"units": {unit.name: {1: 1.0, unit.channels: 3.0}}}).costs((unit,))
    assert len(costs[unit.name]) == unit.channels
    assert sum(costs[unit.name]) == pytest.approx(2)


@pytest.mark.parametrize("scope", [Everyone(), WithinUnit()])
def test_limits_that_cannot_be_are_refused(scope: Any) -> None:
    case = build("llama", 2)

    def search(**budget: Any) -> Any:
        method = Structured(**budget, importance=Chance(), scope=scope, closing=AtEnd())
        return Search(case.model, method, 1, example=budget.get("max_bytes") and example(case.model, case))

    with pytest.raises(PrunusError, match=r"max_bytes = 5: from [\d,]+ to [\d,]+ can be reached"):
        search(max_bytes=5)
    with pytest.raises(PrunusError, match="example = None: max_milliseconds is counted on a call"):
        search(max_milliseconds=5.0)
    with pytest.raises(PrunusError, match=r"storage = .* give max_bytes"):
        search(ratio=0.5, storage=Storage(cache_tokens=5))
    with pytest.raises(PrunusError, match="max_bytes = 9: ratio says"):
        search(ratio=0.5, max_bytes=9)
