"""Plain results: which widths an ordinary config can say, and a narrowed model whose config says them.

Found by trying: an entry of a config is a knob if the model that is built with another number in it differs in the width of
some units, and in nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from prunus.anatomy import Unit, linears
from prunus.calibrated.method import Calibrated
from prunus.errors import PrunusError
from prunus.plan import configs_of, forget, plan_of

EXPERTS_ALIGN = 8
"""Widths of experts that a stock class can run are multiples of it."""


@dataclass(frozen=True)
class Knob:
    """An entry of a config that sets the width of some units."""

    config: str
    """Dotted path of the config within the model's."""
    entry: str
    """Such as `intermediate_size`."""
    units: tuple[Unit, ...]
    """All units that have this width."""

    def __str__(self) -> str:
        return f"config.{self.config}.{self.entry}".replace("..", ".")


def knobs_for(model: nn.Module, parts: Iterable[Unit], wanted: Sequence[Unit], named: bool) -> list[Knob]:
    """The knobs that set the widths of the units that are to be narrowed; others stay whole.

    Args:
        parts: all units of the model.
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
    knobs = [
        knob for knob in _all_knobs(model, [unit for unit in parts if not unit.is_attention]) if _is_meant(knob, names)
    ]
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
    fused = any(linears(model, unit)[-1][1].is_fused for knob in knobs or () for unit in knob.units)
    return method.model_copy(update={"align": max(method.align, EXPERTS_ALIGN)}) if fused else method


def same_count(
    kept: Mapping[str, Tensor], worth: Mapping[str, Tensor], knobs: Iterable[Knob], align: int, least: int, at_most: bool
) -> dict[str, Tensor]:  # fmt: skip
    """The decision with as many channels in every unit of a knob, the best of each: the mean number, to a multiple of `align`. Units that
    all stay whole are left so.

    Args:
        least: channels that every unit keeps.
        at_most: round down, so that no limit is passed.
    """
    even: dict[str, Tensor] = {}
    for knob in knobs:
        if all(bool(kept[unit.name].all()) for unit in knob.units):
            even |= {unit.name: kept[unit.name] for unit in knob.units}
            continue
        mean = sum(int(kept[unit.name].sum()) for unit in knob.units) / len(knob.units) / align
        floor = -(-least // align)
        count = max(floor, int(mean) if at_most else round(mean)) * align
        for unit in knob.units:
            order = worth[unit.name].cpu().argsort(descending=True, stable=True)
            stays = torch.zeros(unit.channels, dtype=torch.bool, device="cpu")
            even[unit.name] = stays.index_fill_(0, order[: min(count, unit.channels)], True)
    return even


def make_plain(model: PreTrainedModel, knobs: Iterable[Knob], kept: Mapping[str, Tensor]) -> None:
    """Turns a model that was narrowed into an ordinary one: its config says its widths, and nothing speaks of a record."""
    forget(model)
    saved = configs_of(model.config)
    ours = {id(config) for config in saved.values()}
    for knob in knobs:
        width, count = knob.units[0].channels, int(kept[knob.units[0].name].sum())
        config = saved[knob.config]
        setattr(config, knob.entry, count)
        for module in model.modules():
            other = vars(module).get("config")  # copies that parts keep to themselves, as T5's stacks do
            is_copy = type(other) is type(config) and id(other) not in ours
            if is_copy and getattr(other, knob.entry, None) == width:
                setattr(other, knob.entry, count)


def _is_meant(knob: Knob, names: set[str]) -> bool:
    return any(unit.name in names for unit in knob.units)


def _all_knobs(model: PreTrainedModel, units: Sequence[Unit]) -> list[Knob]:
    before, found, taken = _shapes(model), list[Knob](), set[str]()
    widths = {unit.channels for unit in units}
    for path, config in configs_of(model.config).items():
        for entry, value in list(config.to_dict().items()):
            if type(value) is int and value in widths and value > 1:
                after = _shapes_with(model, path, entry, value - 1)
                turned = _turned(units, before, after) if after is not None else ()
                if turned and not taken & {unit.name for unit in turned}:
                    taken |= {unit.name for unit in turned}
                    found.append(Knob(path, entry, turned))
    return found


def _turned(
    units: Sequence[Unit], before: Mapping[str, torch.Size], after: Mapping[str, torch.Size]
) -> tuple[Unit, ...]:
    """The units whose width is another, if nothing else is."""
    if before.keys() != after.keys():
        return ()
    changed = {name for name, shape in before.items() if shape != after[name]}
    turned, explained = [], set[str]()
    for unit in units:
        own = {
            name
            for path in (unit.path, *unit.twins, *unit.mirrors)
            for site in (*unit.producers, *unit.norms, *unit.centred, unit.consumer)
            for name in changed
            if name.startswith(f"{path}.{site.linear}".removeprefix("."))
        }
        if own:
            turned.append(unit)
            explained |= own
    return tuple(turned) if changed == explained else ()


def _shapes_with(model: PreTrainedModel, path: str, entry: str, value: int) -> dict[str, torch.Size] | None:
    """The shapes of the model that is built with another number in its config; None where none can be built."""
    changed: PreTrainedConfig = copy.deepcopy(model.config)
    setattr(configs_of(changed)[path], entry, value)
    try:
        with torch.device("meta"):
            return _shapes(type(model)(changed))
    except Exception:  # whatever a constructor raises about sizes that do not fit
        return None


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}
