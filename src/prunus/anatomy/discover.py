"""Reads a model's anatomy off its module types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import nn
from transformers.pytorch_utils import Conv1D

from prunus.anatomy.catalog import BY_SHAPE, CROSS_ATTENTION, OPAQUE, entry, layouts_of, sets_of
from prunus.anatomy.layers import layer_at
from prunus.anatomy.mirrors import copies_of, is_inside, mirrors_of
from prunus.anatomy.proof import settle
from prunus.anatomy.routers import ROUTER, is_router
from prunus.anatomy.towers import Location, locate
from prunus.anatomy.trial import MisfitError, on_the_cpu
from prunus.anatomy.units import Anatomy, Unit, Unmapped, gated, linears
from prunus.parallel import type_of


def anatomy(model: nn.Module, mirrors: Mapping[str, str] | None = None) -> Anatomy:
    """Finds the towers, blocks and units of a model, on any device including `meta`.

    Args:
        model: any module; a `transformers` model needs no preparation.
        mirrors: momentum copies as {path of the copy: path of the original}. A copy carries no gates and is narrowed
            with its original. By default those that the model declares (`mirrored`).

    Raises:
        PrunusError: a mirror path does not exist or has another structure than its original.
    """
    with on_the_cpu():  # trial runs need real numbers, also where the caller builds on meta
        return _anatomy(model, mirrors_of(model, mirrors))


def _anatomy(model: nn.Module, mirrors: dict[str, str]) -> Anatomy:
    places = locate(model)
    found: dict[str, Unit] = {}
    refused: dict[str, str] = {}
    for path, module in model.named_modules():
        if is_inside(path, mirrors):
            continue
        is_described = is_found = False
        in_list = bool(path) and isinstance(model.get_submodule(path.rpartition(".")[0]), nn.ModuleList)
        in_block = in_list or places[path].block != path
        for layout in layouts_of(module):
            by_shape = layout in BY_SHAPE
            if (is_described and not layout.name) or (by_shape and (is_found or not in_block)):
                continue
            try:
                found_layout, sites = settle(layout, module)
            except MisfitError as misfit:
                if not (by_shape and any(above in refused for above in _upwards(path))):
                    refused[path] = str(misfit)
                continue
            name = f"{path}.{layout.name}" if layout.name else path
            kind = found_layout.kind or _kind_by_place(path)
            tower, block = places[path]
            found.setdefault(
                name,
                Unit(**vars(sites), name=name, path=path, kind=kind, tower=tower, block=block, layout=found_layout),
            )
            refused.pop(path, None)
            is_found, is_described = True, is_described or not layout.name
    units = _merge_twins(model, list(found.values()))
    units = [replace(unit, mirrors=copies_of(unit.path, mirrors)) for unit in units]
    sets, whole = _expert_sets(model, places, mirrors)
    unmapped, dense, tower_parameters = _account(model, places, units, refused, mirrors)
    return Anatomy(
        model=type_of(model).__name__,
        model_type=getattr(getattr(model, "config", None), "model_type", "unknown"),
        units=tuple(units),
        sets=tuple(sets),
        sets_refused=whole,
        unmapped=tuple(unmapped),
        dense=dense,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        tower_parameters=tower_parameters,
        mirrors=mirrors,
    )


def _expert_sets(
    model: nn.Module, places: Mapping[str, Location], mirrors: Mapping[str, str]
) -> tuple[list[Unit], dict[str, str]]:
    """Experts that can leave as a whole, and blocks of which none can, with the reason."""
    found, refused = list[Unit](), dict[str, str]()
    for path, module in model.named_modules():
        for layout in () if is_inside(path, mirrors) else sets_of(module):
            tower, block = places[path]
            try:
                found_layout, sites = settle(layout, module)
            except MisfitError as misfit:
                refused[path] = str(misfit)
                continue
            name = f"{path}.{layout.name}".removeprefix(".")
            about = {"name": name, "path": path, "kind": layout.kind, "tower": tower, "block": block}
            found.append(Unit(**vars(sites), **about, layout=found_layout))
    return [replace(one, mirrors=copies_of(one.path, mirrors)) for one in _merge_twins(model, found)], refused


def _kind_by_place(path: str) -> str:
    """The kind of an attention whose layout leaves it to the name that its surroundings give it."""
    return "cross_attention" if CROSS_ATTENTION.search(path.rpartition(".")[2]) else "attention"


def _merge_twins(model: nn.Module, units: list[Unit]) -> list[Unit]:
    """Folds units that hold the very same weights into the first of them."""
    first: dict[tuple[int, ...], int] = {}
    merged: list[Unit] = []
    for unit in units:
        key = tuple(id(layer.weight) for _, layer in linears(model, unit))
        original = merged[first[key]] if key in first else None
        if original is not None and is_inside(unit.path, [original.path]):  # the layers of one MLP, found twice
            continue
        if original is not None:
            merged[first[key]] = replace(original, twins=(*original.twins, unit.path))
        else:
            first[key] = len(merged)
            merged.append(unit)
    return merged


def _account(
    model: nn.Module,
    places: Mapping[str, Location],
    units: list[Unit],
    refused: Mapping[str, str],
    mirrors: Mapping[str, str],
) -> tuple[list[Unmapped], dict[str, int], dict[str, int]]:
    """Where every parameter that no unit can remove lives, and why it stays."""
    claimed: set[int] = set()
    for unit in units:
        claimed.add(id(linears(model, unit)[-1][1].weight))
        claimed |= {id(parameter) for _, layer in gated(model, unit) for parameter in layer.parameters.values()}
        claimed |= {id(layer_at(model.get_submodule(unit.path), site).weight) for site in unit.norms}
    modules: dict[str, nn.Module] = {}
    opaque: dict[str, str | None] = {}
    unmapped: dict[str, Unmapped] = {}
    dense: dict[str, int] = {}
    towers: dict[str, int] = {}
    counted: set[int] = set()
    for path, module in model.named_modules():
        modules[path] = module
        opaque[path] = entry(OPAQUE, module) or (opaque[path.rpartition(".")[0]] if path else None)
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in counted:
                continue
            counted.add(id(parameter))
            tower, block = places[path]
            towers[tower] = towers.get(tower, 0) + parameter.numel()
            if id(parameter) in claimed:
                continue
            owner = next((above for above in _upwards(path) if above in refused), None)
            if owner is None:
                owner = path.rpartition(".")[0] if isinstance(module, nn.Linear) and "." in path else path
            in_block = block != path
            is_bias = name.endswith("bias") and not isinstance(module, nn.Linear)
            is_layer = isinstance(module, nn.Linear)
            is_matrix = parameter.ndim >= 2 and (is_layer or sum(size > 1 for size in parameter.shape) >= 2)
            is_matrix &= not (is_bias or isinstance(module, nn.Embedding | nn.modules.conv._ConvNd))
            if is_inside(path, mirrors):
                reason = "momentum copies: they follow their originals"
            elif is_matrix and in_block and is_router(module, _around(modules, path)):
                reason = ROUTER
            elif opaque[path] or (is_matrix and in_block):
                why = opaque[path] or refused.get(owner) or _why_unknown(modules[owner])
                reason, before = "left dense: no layout fits", unmapped.get(owner)
                count = parameter.numel() + (before.parameters if before else 0)
                unmapped[owner] = Unmapped(owner, type(modules[owner]).__name__, count, why)
            else:
                reason = BIASES if is_bias and in_block else _why_dense(module, parameter, in_block)
            dense[reason] = dense.get(reason, 0) + parameter.numel()
    return list(unmapped.values()), dense, towers


BIASES = "biases of output layers: they stay with the model's width"


def _around(modules: Mapping[str, nn.Module], path: str) -> list[tuple[nn.Module, str]]:
    """The modules around a path, the model first, each with the component of the path that follows it."""
    parts = path.split(".")
    return [(modules[".".join(parts[:depth])], part) for depth, part in enumerate(parts)]


def _upwards(path: str) -> Iterator[str]:
    """A path and those of the modules it lies in, the nearest first."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _why_unknown(module: nn.Module) -> str:
    layers = sum(isinstance(part, nn.Linear | Conv1D) for part in module.modules())
    if layers == 1:
        return "its one layer leads from one width of the model to another, with no channels between"
    return "no layout in the catalog names this type" if layers else "a parameter that no layer holds"


def _why_dense(module: nn.Module, parameter: nn.Parameter, in_block: bool) -> str:
    if isinstance(module, nn.Embedding):
        return "embeddings: their width is the model's width"
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        return "patch convolution: its output is the model's width"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "convolutions: they are no linear map"
    if isinstance(module, nn.Linear):
        return BIASES if in_block else "heads and projections between towers"
    if sum(size > 1 for size in parameter.shape) < 2 or "Norm" in type(module).__name__:
        return "norms and scales: they act on the model's width"
    return "position tables, class tokens and other free parameters"
