"""Reads a model's anatomy off its module types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import nn

from prunus.anatomy.catalog import (
    CATALOG,
    CONNECTORS,
    CONVENTIONS,
    OPAQUE,
    TOWERS,
    Attention,
    FusedAttention,
    Layout,
    Mlp,
)
from prunus.anatomy.trial import MisfitError, keeps_zero, linear_at, prove_mlp
from prunus.anatomy.units import Anatomy, Site, Unit, Unmapped, linears
from prunus.errors import PrunusError


def anatomy(model: nn.Module, mirrors: Mapping[str, str] | None = None) -> Anatomy:
    """Finds the towers, blocks and units of a model, on any device including `meta`.

    Args:
        model: any module; a `transformers` model needs no preparation.
        mirrors: momentum copies as {path of the copy: path of the original}. A copy carries no gates and is narrowed
            with its original.

    Raises:
        PrunusError: a mirror path does not exist or has another structure than its original.
    """
    with torch.device("cpu"):  # trial runs need real numbers, also where the caller builds on meta
        return _anatomy(model, dict(mirrors or {}))


def _anatomy(model: nn.Module, mirrors: dict[str, str]) -> Anatomy:
    _check_mirrors(model, mirrors)
    found: dict[str, Unit] = {}
    refused: dict[str, str] = {}
    for path, module in model.named_modules():
        if is_inside(path, mirrors):
            continue
        layouts, is_known = _layouts(module)
        for layout in layouts:
            try:
                if not is_known and isinstance(layout, Mlp):
                    prove_mlp(module, layout)
                unit = _read(model, path, module, layout)
            except MisfitError as misfit:
                refused[path] = str(misfit)
                continue
            found.setdefault(unit.name, unit)
            refused.pop(path, None)
            if not isinstance(layout, Mlp) or not layout.name:
                break
    units = _merge_twins(model, list(found.values()))
    units = [_with_mirrors(unit, mirrors) for unit in units]
    unmapped, dense, tower_parameters = _account(model, units, refused, mirrors)
    return Anatomy(
        model=type(model).__name__,
        model_type=getattr(getattr(model, "config", None), "model_type", "unknown"),
        units=tuple(units),
        unmapped=tuple(unmapped),
        dense=dense,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        tower_parameters=tower_parameters,
        mirrors=mirrors,
    )


def _layouts(module: nn.Module) -> tuple[tuple[Layout, ...], bool]:
    """The layouts to try on a module, and whether the catalog names its type: if not, each has to be proved."""
    for cls in type(module).__mro__:
        if cls.__name__ in CATALOG:
            return CATALOG[cls.__name__], True
    if type(module).__module__.startswith("torch."):
        return (), False
    return tuple(layout for layout in CONVENTIONS if _has_parts(module, layout)), False


def _has_parts(module: nn.Module, layout: Mlp) -> bool:
    names = {layout.up, layout.down, layout.gate or layout.up}
    return names <= module._modules.keys() and hasattr(module, layout.activation or "act_fn")


def _read(model: nn.Module, path: str, module: nn.Module, layout: Layout) -> Unit:
    if isinstance(layout, Mlp):
        kind, span = "mlp", 1
        names = [layout.up] if layout.gate is None else [layout.gate, layout.up]
        producers = tuple(_site(module, name, 0, 1) for name in names)
        consumer = _site(module, layout.down, 1, 1)
        channels = linear_at(module, layout.down).in_features
        if any(linear_at(module, name).out_features != channels for name in names):
            raise MisfitError("the layers of its MLP disagree on the hidden width")
        if layout.gate is None and layout.activation and not keeps_zero(module, layout.activation):
            raise MisfitError(
                f"its activation {layout.activation} does not map 0 to 0, so a pruned neuron would still speak"
            )
    else:
        local = path.rsplit(".", 1)[-1].lower()
        is_cross = "cross" in local or local in ("encdecattention", "encoder_attn")
        kind, span = ("cross_attention" if is_cross else "attention"), (2 if layout.rotary else 1)
        width = _head_width(module, layout)
        if isinstance(layout, FusedAttention):
            names = [layout.qkv]
            if linear_at(module, layout.qkv).out_features != 3 * linear_at(module, layout.out).in_features:
                raise MisfitError("the rows of its fused qkv are not three times the inputs of its output layer")
        else:
            names = [layout.query, layout.key, layout.value]
            if linear_at(module, layout.query).out_features != linear_at(module, layout.out).in_features:
                raise MisfitError("its queries and its output layer disagree on heads × width")
        for name in names:
            if linear_at(module, name).out_features % width:
                raise MisfitError(
                    f"{name} has {linear_at(module, name).out_features} rows, no multiple of head width {width}"
                )
        if layout.rotary and width % 2:
            raise MisfitError(f"its rotary head width {width} is odd")
        producers = tuple(_site(module, name, 0, linear_at(module, name).out_features // width) for name in names)
        consumer = _site(module, layout.out, 1, linear_at(module, layout.out).in_features // width)
        channels = width // span
    suffix = f".{layout.name}" if isinstance(layout, Mlp) and layout.name else ""
    return Unit(
        name=path + suffix, path=path, kind=kind, tower=tower_of(model, path), block=block_of(model, path),
        channels=channels, span=span, producers=producers, consumer=consumer, layout=layout,
    )  # fmt: skip


def _site(module: nn.Module, path: str, side: int, repeats: int) -> Site:
    """A producer (side 0: rows and their bias leave) or a consumer (side 1: columns leave)."""
    linear = linear_at(module, path)
    features = linear.in_features + (linear.bias is not None) if side == 0 else linear.out_features
    return Site(path, repeats, features)


def _head_width(module: nn.Module, layout: Attention | FusedAttention) -> int:
    core = module.get_submodule(layout.core) if isinstance(layout, Attention) else module
    width = getattr(core, layout.width, None)
    if not isinstance(width, int) or width < 1:
        raise MisfitError(f"it has no head width {layout.width}")
    return width


def tower_of(model: nn.Module, path: str) -> str:
    """Which tower a path belongs to: a connector's, else by its first telling component, else by what the model takes in."""
    if any(part in CONNECTORS for part in path.split(".")):
        return "connector"
    parent = model
    for part in path.split(".") if path else ():
        if part in TOWERS:
            return TOWERS[part]
        child = parent.get_submodule(part)
        if part in ("encoder", "decoder") and hasattr(parent, "encoder") and hasattr(parent, "decoder"):
            if getattr(child, "main_input_name", None) == "pixel_values":
                return "vision"
            return "text" if part == "encoder" else "decoder"
        parent = child
    modalities = getattr(model, "input_modalities", ())
    if ("image" in modalities and "text" in modalities) or getattr(model, "main_input_name", None) == "pixel_values":
        return "joint" if "text" in modalities else "vision"
    generates = getattr(model, "can_generate", lambda: False)()
    causal = generates or getattr(getattr(model, "config", None), "is_decoder", False) or _has_causal_attention(model)
    return "language" if causal else "text"


def _has_causal_attention(model: nn.Module) -> bool:
    return any(getattr(module, "is_causal", False) is True for module in model.modules())


def block_of(model: nn.Module, path: str) -> str:
    """The outermost list element on the path: one transformer layer."""
    parent, walked = model, []
    for part in path.split(".") if path else ():
        child = parent.get_submodule(part)
        walked.append(part)
        if isinstance(parent, nn.ModuleList):
            return ".".join(walked)
        parent = child
    return path


def _merge_twins(model: nn.Module, units: list[Unit]) -> list[Unit]:
    """Folds units that hold the very same weights into the first of them."""
    first: dict[tuple[int, ...], int] = {}
    merged: list[Unit] = []
    for unit in units:
        key = tuple(id(linear.weight) for _, linear in linears(model, unit))
        if key in first:
            original = merged[first[key]]
            merged[first[key]] = replace(original, twins=(*original.twins, unit.path))
        else:
            first[key] = len(merged)
            merged.append(unit)
    return merged


def _check_mirrors(model: nn.Module, mirrors: Mapping[str, str]) -> None:
    for copy, original in mirrors.items():
        shapes = []
        for path in (copy, original):
            try:
                module = model.get_submodule(path)
            except AttributeError:
                raise PrunusError("mirrors", path, "the model has no module at this path") from None
            shapes.append({name: parameter.shape for name, parameter in module.named_parameters()})
        if shapes[0] != shapes[1]:
            raise PrunusError("mirrors", {copy: original}, "the two modules do not have the same parameters")


def is_inside(path: str, roots: Mapping[str, str]) -> bool:
    return any(path == root or path.startswith(f"{root}.") for root in roots)


def _with_mirrors(unit: Unit, mirrors: Mapping[str, str]) -> Unit:
    copies = tuple(
        copy + unit.path.removeprefix(original)
        for copy, original in mirrors.items()
        if is_inside(unit.path, {original: copy})
    )
    return replace(unit, mirrors=copies) if copies else unit


def _account(
    model: nn.Module, units: list[Unit], refused: Mapping[str, str], mirrors: Mapping[str, str]
) -> tuple[list[Unmapped], dict[str, int], dict[str, int]]:
    """Where every parameter that no unit can remove lives, and why it stays."""
    claimed: dict[int, int] = {}
    for unit in units:
        for site, linear in linears(model, unit):
            own = unit.channels * unit.span * site.repeats
            claimed[id(linear.weight)] = linear.weight.numel()
            if site is not unit.consumer and linear.bias is not None:
                claimed[id(linear.bias)] = own
    unmapped: dict[str, Unmapped] = {}
    dense: dict[str, int] = {}
    towers: dict[str, int] = {}
    counted: set[int] = set()
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in counted:
                continue
            counted.add(id(parameter))
            tower = tower_of(model, path)
            towers[tower] = towers.get(tower, 0) + parameter.numel()
            if id(parameter) in claimed:
                continue
            owner = next((above for above in _upwards(path) if above in refused), None)
            if owner is None:
                owner = path.rsplit(".", 1)[0] if isinstance(module, nn.Linear) and "." in path else path
            opaque = next((reason for name, reason in OPAQUE.items() if _has_type(model, path, name)), None)
            in_block = block_of(model, path) != path
            is_matrix = parameter.ndim >= 2 and not isinstance(module, nn.Embedding | nn.Conv2d | nn.Conv3d)
            if is_inside(path, mirrors):
                reason = "momentum copies: they follow their originals"
            elif opaque or (is_matrix and in_block):
                why = opaque or refused.get(owner) or "no layout in the catalog names this type"
                reason, before = "left dense: no layout fits", unmapped.get(owner)
                count = parameter.numel() + (before.parameters if before else 0)
                unmapped[owner] = Unmapped(owner, type(model.get_submodule(owner)).__name__, count, why)
            else:
                reason = _why_dense(module, parameter, in_block)
            dense[reason] = dense.get(reason, 0) + parameter.numel()
    return list(unmapped.values()), dense, towers


def _upwards(path: str) -> Iterator[str]:
    """A path and those of the modules it lies in, the nearest first."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _has_type(model: nn.Module, path: str, name: str) -> bool:
    parts = path.split(".")
    ancestors = (model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) + 1))
    return any(type(ancestor).__name__ == name for ancestor in ancestors)


def _why_dense(module: nn.Module, parameter: nn.Parameter, in_block: bool) -> str:
    if isinstance(module, nn.Embedding):
        return "embeddings: their width is the model's width"
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        return "patch convolution: its output is the model's width"
    if isinstance(module, nn.Linear) and in_block:
        return "biases of output layers: they stay with the model's width"
    if isinstance(module, nn.Linear):
        return "heads and projections between towers"
    if parameter.ndim == 1 or "Norm" in type(module).__name__:
        return "norms and scales: they act on the model's width"
    return "position tables, class tokens and other free parameters"
