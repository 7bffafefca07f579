"""Plain results: which widths an ordinary config can say, and a narrowed model whose config says them.

Found by trying: an entry of a config is a knob if the model that is built with another number in it differs in the width of
some units, and in nothing else.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from prunus.anatomy import Unit, linears
from prunus.calibrated.method import Calibrated
from prunus.errors import PrunusError
from prunus.plan import configs_of, forget, plan_of
from prunus.structured import AMOUNTS, Cost, Whole, cost_of

UNSAID = re.compile("inner|intermediate|ffn|mlp")
"""Names in a config of widths that follow from others where they are None, such as GPT-2's `n_inner`."""
EXPERTS_ALIGN = 8
"""Widths of experts that a stock class can run are multiples of it."""


@dataclass(frozen=True)
class Knob:
    """Entries of a config that set the width of some units."""

    config: str
    """Dotted path of the config within the model's."""
    entries: Mapping[str, int]
    """Such as `intermediate_size`, or the numbers of heads: how much each is for one channel."""
    pins: Mapping[str, int]
    """Entries that have to say what would follow from the others otherwise, such as `head_dim`."""
    units: tuple[Unit, ...]
    """All units that have this width."""
    counts: tuple[int, ...] | None = None
    """The numbers of channels that the config takes, ascending; None is any."""

    def __str__(self) -> str:
        return f"config.{self.config}.{next(iter(self.entries))}".replace("..", ".")

    def written(self, count: int) -> dict[str, int]:
        """What the config says when so many channels stay."""
        return {name: each * count for name, each in self.entries.items()} | dict(self.pins)

    def numbers(self, align: int, least: int) -> list[int]:
        """How many channels can stay, ascending: multiples of `align` where they are no heads, at least `least`, or all."""
        channels = self.units[0].channels
        numbers = self.counts or (*range(align, channels, align), channels)
        return [count for count in numbers if count >= min(least, channels)]

    def gone(self, count: int, costs: Mapping[str, Cost]) -> float:
        """What leaves where so many channels stay."""
        return sum(cost_of(costs[unit.name], unit.channels - count) for unit in self.units)

    def nearest(self, wanted: float, align: int, least: int, at_most: bool) -> int:
        """How many channels stay, of the numbers that can be: the nearest to what is wanted, or the nearest below it."""
        allowed = self.numbers(align, least)
        if at_most:
            allowed = [count for count in allowed if count <= wanted + 1e-6] or allowed[:1]
        nearest: int = min(allowed, key=lambda count: abs(count - wanted))
        return nearest


def knobs_for(model: nn.Module, parts: Iterable[Unit], wanted: Sequence[Unit], named: bool) -> list[Knob]:
    """The knobs that set the widths of the units that are to be narrowed; others stay whole.

    Args:
        parts: all units of the model, or all its sets of experts.
        wanted: units that were selected.
        named: whether they were named, so that each must have a knob.

    Raises:
        PrunusError: no knob sets them, or one sets the width of a unit, too, that was not selected.
    """
    if not isinstance(model, PreTrainedModel):
        raise PrunusError("plain", type(model).__name__, "a plain result is a transformers model with its config")
    if plan_of(model) is not None:
        raise PrunusError(
            "plain",
            type(model).__name__,
            "it is narrowed already, in a way that only prunus loads; start from the dense model",
        )
    names = {unit.name for unit in wanted}
    knobs = [knob for knob in _all_knobs(model, list(parts)) if any(unit.name in names for unit in knob.units)]
    turned = {unit.name for knob in knobs for unit in knob.units}
    left = [unit for unit in wanted if unit.name not in turned]
    if left and (named or not knobs):
        listed = ", ".join(unit.name for unit in left[:3]) + (", …" if len(left) > 3 else "")
        raise PrunusError(
            "plain", listed, f"no entry of the config of {type(model).__name__} sets the width of these {len(left)} units alone; exclude them, or "
            "leave plain out",
        )  # fmt: skip
    for knob in knobs:
        for unit in knob.units:
            if unit.name not in names:
                raise PrunusError(
                    "plain", unit.name, f"{knob} sets its width, too, as that of {knob.units[0].name}; select both"
                )
    return knobs


def loadable(model: nn.Module, method: Calibrated, knobs: Iterable[Knob] | None) -> Calibrated:
    """The method with the alignment that stock kernels need: those that multiply all experts at once want rows of whole 16 bytes, which eight
    numbers of two bytes are."""
    fused = any(not unit.sliced and linears(model, unit)[-1][1].is_fused for knob in knobs or () for unit in knob.units)
    return method.model_copy(update={"align": max(method.align, EXPERTS_ALIGN)}) if fused else method


def within_reach(method: Calibrated, whole: Whole, units: tuple[Unit, ...], knobs: Sequence[Knob] | None) -> Calibrated:
    """The method with the ratio that its budget comes to.

    Raises:
        PrunusError: it cannot be reached; of plain results, by numbers that a config can say.
    """
    if knobs is None:
        found = method.fit(whole, units)
        found.check(units)
        return found
    found = method.model_copy(update={"align": 1}).fit(whole, units)  # what is rounded is their common number
    found.check(units)
    costs, least = found.unit_costs(units), found.for_units(units).min_channels
    numbers = {str(knob): knob.numbers(method.align, least) for knob in knobs}
    most = sum(knob.gone(numbers[str(knob)][0], costs) for knob in knobs)
    step = 0.0 if method.is_limit else max(knob.gone(knob.units[0].channels - 1, costs) for knob in knobs)
    total = sum(cost_of(costs[unit.name], unit.channels) for unit in units)
    if most < found.goal * total - step * method.align - 1e-9 * total:
        field = next(name for name in AMOUNTS if getattr(method, name) is not None or name == AMOUNTS[-1])
        raise PrunusError(
            field, getattr(method, field), f"it takes {found.goal:.4f} of the units' cost, and with min_channels={method.min_channels} and "
            f"align={method.align} at most {most / total:.4f} can go that an ordinary config says; ask for less, or lower the floors",
        )  # fmt: skip
    return found.model_copy(update={"align": method.align})


def same_count(
    kept: Mapping[str, Tensor], worth: Mapping[str, Tensor], knobs: Iterable[Knob], costs: Mapping[str, Cost], align: int, least: int,
    at_most: bool,
) -> dict[str, Tensor]:  # fmt: skip
    """The decision with as many channels in every unit of a knob, the best of each: the mean number, as near as the knob can be set.

    What rounding leaves over in one knob is the next one's, that with the dearest channels first; and what the floors of those that are last
    leave over, others' again, that with the cheapest channels first.

    Args:
        costs: unit → cost of a channel.
        align: what numbers are multiples of, where they are widths and no heads.
        least: channels that every unit keeps.
        at_most: round down, so that no limit is passed.
    """
    even: dict[str, Tensor] = {}
    ordered = sorted(knobs, key=lambda knob: -sum(cost_of(costs[unit.name], 1) for unit in knob.units))
    counts: list[int] = []
    left = 0.0
    for knob in ordered:
        stays, channels = sum(int(kept[unit.name].sum()) for unit in knob.units), knob.units[0].channels
        price = knob.gone(channels - 1, costs)
        due = sum(cost_of(costs[unit.name], channels - int(kept[unit.name].sum())) for unit in knob.units) + left
        counts.append(knob.nearest(stays / len(knob.units) - left / price, align, least, at_most))
        left = due - knob.gone(counts[-1], costs)
    for place, knob in reversed(list(enumerate(ordered))):
        for count in reversed([number for number in knob.numbers(align, least) if number < counts[place]]):
            more = knob.gone(count, costs) - knob.gone(counts[place], costs)
            if left <= (1e-6 if at_most else more / 2 + 1e-6):
                break
            counts[place], left = count, left - more
    for knob, count in zip(ordered, counts, strict=True):
        for unit in knob.units:
            order = worth[unit.name].cpu().argsort(descending=True, stable=True)
            mask = torch.zeros(unit.channels, dtype=torch.bool, device="cpu")
            even[unit.name] = mask.index_fill_(0, order[:count], True)
    return even


def make_plain(model: PreTrainedModel, knobs: Iterable[Knob], kept: Mapping[str, Tensor]) -> None:
    """Turns a model that was narrowed into an ordinary one: its config says its widths, and nothing speaks of a record."""
    forget(model)
    for knob in knobs:
        write_entries(model, knob.config, knob.written(int(kept[knob.units[0].name].sum())))
    take_stock_sizes(model)


def write_entries(model: PreTrainedModel, path: str, entries: Mapping[str, Any]) -> None:
    """Writes entries into the config at a path within the model's."""
    config = configs_of(model.config)[path]
    for name, value in entries.items():
        setattr(config, name, value)


def take_stock_sizes(model: PreTrainedModel) -> None:
    """Lets modules say the whole numbers that the stock class gives them by the config, their sizes and places, and so the copies of configs that
    parts keep to themselves, as T5's stacks do."""
    with torch.device("meta"):
        stock = type(model)(copy.deepcopy(model.config))
    saved = {id(config) for config in configs_of(model.config).values()}
    for path, module in stock.named_modules():
        there = vars(model.get_submodule(path))
        for name, value in vars(module).items():
            if type(value) is int and type(there.get(name)) is int:
                there[name] = value
        own = there.get("config")
        if isinstance(own, PreTrainedConfig) and id(own) not in saved:
            for name, value in vars(vars(module)["config"]).items():
                if type(value) in (int, list) and not name.startswith("_"):
                    setattr(own, name, copy.deepcopy(value))


@dataclass(frozen=True)
class Built:
    """What a config makes of a class, as far as can be seen without weights."""

    shapes: Mapping[str, torch.Size]
    """Of parameters and buffers."""
    settings: Mapping[str, object]
    """What modules hold besides, such as scales and kinds; sizes are in the shapes."""


def built(model: PreTrainedModel) -> Built:
    """What a model is built of."""
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    settings = {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training" and isinstance(value, bool | float | str | None)
    }
    return Built({name: tensor.shape for name, tensor in tensors}, settings)


def built_with(model: PreTrainedModel, path: str, entries: Mapping[str, Any]) -> Built | None:
    """What is built with other entries in a config; None where nothing can be built, or such a config cannot be read."""
    changed = config_with(model.config, path, entries)
    if changed is None:
        return None
    try:
        with torch.device("meta"):
            return built(type(model)(changed))
    except Exception:  # whatever a constructor raises about sizes that do not fit
        return None


def config_with(config: PreTrainedConfig, path: str, entries: Mapping[str, Any]) -> PreTrainedConfig | None:
    """A copy with other entries, as it is read from a folder; None where it is not read."""
    changed: PreTrainedConfig = copy.deepcopy(config)
    for name, value in entries.items():
        setattr(configs_of(changed)[path], name, value)
    try:
        read: PreTrainedConfig = type(config).from_dict(changed.to_dict())
    except Exception:  # whatever a config raises about numbers that do not fit
        return None
    read._attn_implementation = config._attn_implementation
    return read


def _all_knobs(model: PreTrainedModel, units: Sequence[Unit]) -> list[Knob]:
    with torch.device("meta"):
        before = built(type(model)(copy.deepcopy(model.config)))
    found, taken = list[Knob](), set[str]()
    if any(before.shapes.get(name) != parameter.shape for name, parameter in model.named_parameters()):
        return found  # it is not what its config says
    for knob in (*_of_widths(model, units), *_of_heads(model, units)):
        count = knob.counts[-2] if knob.counts else knob.units[0].channels - 1
        after = built_with(model, knob.config, knob.written(count))
        turned = _turned(knob.units, before, after, knob.units[0].channels - count) if after is not None else ()
        if turned and not taken & {unit.name for unit in turned}:
            taken |= {unit.name for unit in turned}
            found.append(replace(knob, units=turned))
    return found


def _of_widths(model: PreTrainedModel, units: Sequence[Unit]) -> Iterator[Knob]:
    """Every entry that may be a width, with all units of that width; one that says nothing, with those of each width."""
    for path, config in configs_of(model.config).items():
        for entry, value in list(config.to_dict().items()):
            alike: dict[tuple[int, int], list[Unit]] = {}
            is_unsaid = value is None and UNSAID.search(entry) is not None
            for unit in units:
                has_norms = bool(unit.norms or unit.centred)  # whose ε follows
                is_width = (unit.layout.mixes or not unit.is_attention) and not has_norms
                is_said = type(value) is int and unit.channels * unit.span == value
                if is_width and unit.channels > 1 and (is_said or (is_unsaid and not unit.is_attention)):
                    alike.setdefault((unit.span, unit.channels), []).append(unit)
            for (span, _), wide in alike.items():
                yield Knob(path, {entry: span}, {}, tuple(wide))


def _of_heads(model: PreTrainedModel, units: Sequence[Unit]) -> Iterator[Knob]:
    """Every entry, or pair of entries, that may be numbers of heads, with all units of so many."""
    alike: dict[tuple[int, int, int], list[Unit]] = {}
    for unit in units:
        if unit.is_attention and not unit.layout.mixes and unit.channels > 1:
            of_group, of_head = (unit.features_per_channel(site) for site in (unit.consumer, unit.producers[1]))
            alike.setdefault((unit.channels, of_group // of_head, of_head), []).append(unit)
    for (heads, group, width), same in alike.items():
        for path, config in configs_of(model.config).items():
            numbers = {name: value for name, value in config.to_dict().items() if type(value) is int}
            of_queries, of_keys = (
                sorted((name for name, value in numbers.items() if value == count), key=lambda name: "head" not in name)
                for count in (heads * group, heads)
            )
            pairs = [{one: group, other: 1} for one in of_queries for other in of_keys if one != other]
            pairs += [{one: 1} for one in of_keys] if group == 1 else []
            for entries in pairs:
                for pins in ({}, {"head_dim": width}):
                    knob = Knob(path, entries, pins, tuple(same))
                    counts = [
                        n for n in range(1, heads) if config_with(model.config, path, knob.written(n)) is not None
                    ]
                    if counts:
                        yield replace(knob, counts=(*counts, heads))


def _turned(units: Sequence[Unit], before: Built, after: Built, gone: int) -> tuple[Unit, ...]:
    """The units that have so many channels less, if all is as it was apart from them."""
    if before.shapes.keys() != after.shapes.keys() or before.settings != after.settings:
        return ()
    left = {name: shape for name, shape in before.shapes.items() if shape != after.shapes[name]}
    turned = []
    for unit in units:
        expected = dict(_shapes_without(unit, before.shapes, gone))
        if all(after.shapes[name] == shape for name, shape in expected.items()):
            turned.append(unit)
            for name in expected:
                left.pop(name, None)
    return () if left else tuple(turned)


def _shapes_without(unit: Unit, shapes: Mapping[str, torch.Size], gone: int) -> Iterator[tuple[str, torch.Size]]:
    """The parameters of a unit, and their shapes when so many channels have gone."""
    for path in (unit.path, *unit.twins, *unit.mirrors):
        for site in (*unit.producers, *unit.norms, *unit.centred, unit.consumer):
            where = f"{path}.{site.linear}".removeprefix(".")
            if unit.sliced:
                sizes = [size - gone * (side == site.side) for side, size in enumerate(shapes[where])]
                yield where, torch.Size(sizes)
                continue
            fewer = unit.features_per_channel(site) * gone
            for name in (where, f"{where}_bias", f"{where}.weight", f"{where}.bias"):
                is_bias = name.endswith("bias")
                if name in shapes and not (is_bias and site is unit.consumer):
                    shape, holds_experts = list(shapes[name]), name.removesuffix("_bias") == where
                    shape[-1 if is_bias else site.side] -= fewer // shape[0] if holds_experts else fewer
                    yield name, torch.Size(shape)
