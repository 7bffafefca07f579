"""What a narrowed model carries: marks at the modules that were narrowed, and in its configs the record that narrows them again.

A record lies in the config of the innermost `PreTrainedModel` that owns the units, with names relative to that part, so that
whoever builds the part from its config, in whatever model, builds it narrow. Parts that share one config, such as BLIP's
question encoder and answer decoder, may differ: there the record moves up to the model that holds both. The marks are plain
attributes of the narrowed modules. They say what is true of a model in memory; records are written from them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pydantic import ConfigDict, Field
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from prunus.anatomy import anatomy, declared_mirrors, has_module, is_inside, module_of
from prunus.plan.channels import Plan, UnitPlan
from prunus.plan.file import PlanFile
from prunus.plan.history import Entry, Recorded

RECORD = "prunus"
"""The entry of a config that holds the record of narrowing."""
NOTE = "narrowed by prunus: `import prunus` before this is loaded, or the shapes will not fit (README.md says more)"
_MARKS, _WHOLE = "prunus_units", "prunus_whole"


class Whole(Recorded):
    """What was decided over all units together."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    ratio: float = Field(ge=0, lt=1)
    mirrors: dict[str, str] = Field(default_factory=dict)
    units: str
    """Digest of the units it was decided over."""


class Narrowing(PlanFile):
    """The record in a config."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: Literal["prunus.narrow/2"] = "prunus.narrow/2"
    note: str = NOTE
    units: dict[str, UnitPlan] = Field(default_factory=dict)
    """Name relative to the part → what stays of it."""
    copies: dict[str, UnitPlan] = Field(default_factory=dict)
    """The same for modules that follow others: momentum copies, and those with tied weights."""
    whole: Whole | None = None


class Mark(NamedTuple):
    """What was done to a module."""

    plan: UnitPlan
    copy: bool


class Spot(NamedTuple):
    """Where a unit is: the path of its module, and what its name adds to that."""

    path: str
    suffix: str


def mark(module: nn.Module, suffix: str, plan: UnitPlan, copy: bool = False) -> None:
    """Notes at a module that its unit was narrowed, after what was done to it before."""
    done = dict(getattr(module, _MARKS, {}))
    if suffix in done:
        plan = plan.after(done[suffix].plan)
    setattr(module, _MARKS, {**done, suffix: Mark(plan, copy)})


def marks(model: nn.Module) -> dict[Spot, Mark]:
    """All that was done to the modules of a model. What is in a momentum copy follows its original, also where it was built as a part
    of its own."""
    copies = declared_mirrors(model)
    return {
        Spot(path, suffix): done._replace(copy=done.copy or is_inside(path, copies))
        for path, module in model.named_modules()
        for suffix, done in getattr(module, _MARKS, {}).items()
    }


def plan_of(model: nn.Module) -> Plan | None:
    """The plan a model was narrowed by, or None if it is dense. A model built without weights has it, too."""
    found = marks(model)
    if not found:
        return None
    own = {spot: done for spot, done in found.items() if not done.copy} or found
    units = {path + suffix: done.plan for (path, suffix), done in own.items()}
    whole = _whole_of(model, units)
    mirrors = {
        copy: original
        for copy, original in whole.mirrors.items()
        if has_module(model, copy) and has_module(model, original)
    }
    return Plan(model=type(model).__name__, history=whole.history, ratio=whole.ratio, units=units, mirrors=mirrors)


def write_record(model: nn.Module, plan: Plan | None = None) -> None:
    """Writes what the marks of a model say into the configs of its parts, in place of earlier records.

    Args:
        plan: what was decided over all units; by default what the model knows of it.
    """
    decided = plan or plan_of(model)
    if decided is not None:
        own = {path + suffix: done.plan for (path, suffix), done in marks(model).items() if not done.copy}
        whole = Whole(ratio=decided.ratio, history=decided.history, mirrors=decided.mirrors, units=_digest(own))
        setattr(model, _WHOLE, whole)
    else:
        whole = None
    for root in _outermost(model):
        _write(root, whole)


def forget(model: PreTrainedModel) -> None:
    """Takes marks and records of narrowing off a model, whose configs say its widths from now on."""
    for module in model.modules():
        for name in (_MARKS, _WHOLE):
            module.__dict__.pop(name, None)
        if isinstance(module, PreTrainedModel):
            for config in configs_of(module.config).values():
                _set(config, None)


@contextmanager
def true_record(model: PreTrainedModel) -> Iterator[None]:
    """While the context is open, the configs of a model, or of a part of one, say what the marks say.

    A part that is saved alone owns what its whole holds for it; a dense model that shares its config with a narrowed one
    claims nothing.
    """
    configs = configs_of(model.config).values()
    before = [(config, getattr(config, RECORD, None)) for config in configs]
    known = model.__dict__.get(_WHOLE)
    try:
        if marks(model) or any(record is not None for _, record in before):
            write_record(model)
        yield
    finally:
        for config, record in before:
            _set(config, record)
        if known is None:
            model.__dict__.pop(_WHOLE, None)
        else:
            setattr(model, _WHOLE, known)


def records_of(config: PreTrainedConfig) -> dict[str, dict[str, Any]]:
    """Dotted path of a config within the outer one → its record."""
    found = {path: getattr(inner, RECORD, None) for path, inner in configs_of(config).items()}
    return {path: record for path, record in found.items() if record is not None}


def configs_of(config: PreTrainedConfig) -> dict[str, PreTrainedConfig]:
    """A config and those inside of it, by their dotted paths."""
    found = {"": config}
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            found |= {f"{name}.{path}".rstrip("."): inner for path, inner in configs_of(value).items()}
    return found


def recorded(part: PreTrainedModel) -> Narrowing | Plan | None:
    """What the config of a part says; a `Plan` is what version 0.1 wrote, with names relative to the saved model.

    Raises:
        PrunusError: the record is damaged.
    """
    found = getattr(part.config, RECORD, None)
    if found is None:
        return None
    reader = Plan if isinstance(found, Mapping) and str(found.get("format")).startswith("prunus.plan/") else Narrowing
    return reader.parse(found, "config.json")


def _whole_of(model: nn.Module, units: Mapping[str, UnitPlan]) -> Whole:
    """What is known of the decision over exactly these units, or else what follows from them."""
    known: list[Whole] = [model.__dict__[_WHOLE]] if _WHOLE in model.__dict__ else []
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            record = recorded(part)
            if isinstance(record, Narrowing) and record.whole is not None:
                known.append(record.whole)
    digest = _digest(units)
    for whole in known:
        if whole.units == digest:
            return whole
    costs = {name: unit.channel_cost for name, unit in anatomy(model).by_name.items()}
    if not costs.keys() >= units.keys():
        costs = dict.fromkeys(units, 1)
    total = sum(costs[name] * unit.channels for name, unit in units.items())
    stays = sum(costs[name] * len(unit.kept) for name, unit in units.items())
    told: list[tuple[Entry, ...]] = []
    for whole in known:
        told += [whole.history] if whole.history not in told else []
    return Whole(
        ratio=1 - stays / total, history=sum(told, ()), mirrors=known[0].mirrors if known else {}, units=digest
    )


def _digest(units: Mapping[str, UnitPlan]) -> str:
    """What units there are, in the model's order, whatever their names: a part has others than its whole."""
    listed = [unit.model_dump(mode="json") for unit in units.values()]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]


def _outermost(model: nn.Module) -> Iterator[PreTrainedModel]:
    if isinstance(model, PreTrainedModel):
        yield model
        return
    for child in model.children():
        yield from _outermost(child)


@dataclass
class _Entries:
    """What is to be written into one config."""

    config: PreTrainedConfig
    units: dict[str, UnitPlan] = field(default_factory=dict)
    copies: dict[str, UnitPlan] = field(default_factory=dict)


def _write(root: PreTrainedModel, whole: Whole | None) -> None:
    done = marks(root)
    parts = {path: part for path, part in root.named_modules() if isinstance(part, PreTrainedModel)}
    entries = {id(config): _Entries(config) for config in configs_of(root.config).values()}
    for spot, known in done.items():
        owner = _owner(root, parts, done, spot, entries)
        name = _relative(spot.path, owner) + spot.suffix
        written = entries[id(parts[owner].config)]
        (written.copies if known.copy else written.units)[name] = known.plan
    for entry in entries.values():
        users = [part for part in parts.values() if part.config is entry.config]
        before = getattr(entry.config, RECORD, None)
        kept: dict[str, dict[str, Any]] = {"units": {}, "copies": {}}
        if isinstance(before, Mapping) and str(before.get("format")).startswith("prunus.narrow/"):
            for kind in kept:
                # what this model does not have, such as the decoder of a model of which only the encoder was loaded
                named = before.get(kind, {}).items()
                kept[kind] = {n: unit for n, unit in named if all(module_of(part, n) is None for part in users)}
        units, copies = {**kept["units"], **entry.units}, {**kept["copies"], **entry.copies}
        record = Narrowing(units=units, copies=copies, whole=whole).model_dump(mode="json") if units or copies else None
        _set(entry.config, record)


def _owner(
    root: nn.Module,
    parts: Mapping[str, PreTrainedModel],
    done: Mapping[Spot, Mark],
    spot: Spot,
    saved: Mapping[int, Any],
) -> str:
    """Path of the innermost part around a unit whose config is saved, and speaks of no other unit by the same name."""
    above = [path for path in parts if path in ("", spot.path) or spot.path.startswith(f"{path}.")]
    for path in sorted(above, key=len, reverse=True):
        config, inside = parts[path].config, _relative(spot.path, path)
        if id(config) not in saved:
            continue
        others = (  # a config that is not saved may be built as a copy of this one
            _join(other, inside)
            for other, part in parts.items()
            if other != path and (part.config is config or id(part.config) not in saved)
        )
        namesakes = [Spot(other, spot.suffix) for other in others if has_module(root, other)]
        if all(other in done and done[other].plan == done[spot].plan for other in namesakes):
            return path
    return ""


def _set(config: PreTrainedConfig, record: dict[str, Any] | None) -> None:
    if record is not None:
        setattr(config, RECORD, record)
    elif hasattr(config, RECORD):
        delattr(config, RECORD)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _relative(path: str, root: str) -> str:
    return path.removeprefix(f"{root}.") if root and path != root else "" if root else path
