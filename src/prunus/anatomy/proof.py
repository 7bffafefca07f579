"""Trials of attentions: whether a module that is cut as a layout says computes what the masked one does.

A copy of the module with small random weights is run with the arguments that its forward asks for, once masked and once cut.
What is found holds for every module of the same type and shape.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from prunus.anatomy.arguments import SHARED, arguments_of
from prunus.anatomy.cutting import cut, silence
from prunus.anatomy.layouts import Layout, Sites
from prunus.anatomy.rotation import turned_features
from prunus.anatomy.trial import MisfitError, trial_numbers, without_hooks

LARGEST = 1 << 24
"""Weights of a copy; a larger one is not tried."""
_KNOWN: dict[Any, tuple[Layout | None, str]] = {}
"""Layout, type and shape of a module → the layout that holds, or why there is none."""


def settle(layout: Layout, module: nn.Module) -> tuple[Layout, Sites]:
    """The layout that holds for a module, and its sites.

    Raises:
        MisfitError: it does not describe the module; or a trial proves it wrong, or does not prove what is a guess.
    """
    if not layout.is_attention:
        return _first_that_fits(layout, module)
    if not layout.is_tried:
        layout.sites(module)  # says why it cannot be cut
    key = layout, _shape_of(module)
    found = _KNOWN.get(key)
    if found is None:
        with trial_numbers():
            found = _first_that_holds(layout, module)
        if "forward" not in vars(module):
            _KNOWN[key] = found
    if found[0] is None:
        raise MisfitError(found[1])
    return found[0], found[0].sites(module)


def _first_that_fits(layout: Layout, module: nn.Module) -> tuple[Layout, Sites]:
    """Of layouts that prove themselves."""
    why: MisfitError | None = None
    for candidate in layout.candidates(module):
        try:
            return candidate, candidate.sites(module)
        except MisfitError as misfit:
            why = why or misfit
    raise why or MisfitError("it has no layers that make an MLP")


def _first_that_holds(layout: Layout, module: nn.Module) -> tuple[Layout | None, str]:
    why, runs = "", None
    try:
        candidates = list(layout.candidates(module))
    except MisfitError as misfit:
        return None, str(misfit)
    for candidate in candidates:
        try:
            sites = candidate.sites(module)
        except MisfitError as misfit:
            why = why or str(misfit)
            continue
        if not all(isinstance(module.get_submodule(s.linear), nn.Linear) for s in (*sites.producers, sites.consumer)):
            return candidate, ""
        if runs is None:
            try:
                runs = list(_runs(module, sites))
            except Exception as error:  # a stranger's forward may raise anything
                runs, why = [], f"a trial run of it failed ({type(error).__name__}: {error})"
            if not runs and not layout.is_tried:
                return candidate, ""
        if not runs:
            return None, why or "no trial run of it passes: prunus does not know the arguments that it asks for"
        objections = [_objection(candidate, sites, *run) for run in runs]
        if not all(objections):
            return candidate, ""
        why = why or objections[0]
    return None, why or "it has no layers for queries, keys, values and output"


def _objection(layout: Layout, sites: Sites, sample: nn.Module, arguments: dict[str, Any]) -> str:
    """What a trial says against a layout."""
    generator = torch.Generator().manual_seed(1)
    kept = torch.randperm(sites.channels, generator=generator)[: max(1, sites.channels // 2)].sort().values
    masked, narrow = without_hooks(sample), without_hooks(sample)
    silence(masked, sites, kept)
    try:
        if len(kept) < sites.channels:
            cut(narrow, layout, sites, kept, {})
        whole, expected, found = (_output(one, arguments) for one in (sample, masked, narrow))
    except Exception as error:  # a stranger's forward may raise anything
        return f"a trial run of it failed once it was narrow ({type(error).__name__}: {error})"
    if len(kept) < sites.channels and _agree(whole, expected):
        return "what a trial run of it gives does not depend on its channels"
    return "" if _agree(expected, found) else "a trial run of it, narrowed, does not give what the masked one gives"


def _agree(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape or not bool(first.isfinite().all()):
        return False
    return bool((first - second).abs().max() <= 1e-5 * first.abs().max().clamp_min(1.0))


def _output(module: nn.Module, arguments: dict[str, Any]) -> Tensor:
    """The first tensor that a run gives.

    Raises:
        MisfitError: it hands its keys and values to other layers.
    """
    shared: dict[Any, Any] = {}
    given = {**arguments, SHARED: shared} if SHARED in arguments else dict(arguments)
    found = module(**given)
    if shared:
        raise MisfitError("other layers use its keys and values")
    while not isinstance(found, Tensor):
        found = found[0]
    return found.float()


def _runs(module: nn.Module, sites: Sites) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
    """Copies of a module, each with arguments that it takes: of small model widths, or else of its own."""
    turned = turned_features(module, len(sites.order) or sites.channels * sites.span)
    first: Exception | None = None
    for is_small in (True, False):
        sample = _sample(module, sites, is_small)
        if sample is None:
            continue
        widths = [sample.get_submodule(s.linear)._parameters["weight"].shape[1] for s in sites.producers]  # type: ignore[union-attr]
        passed = False
        for arguments in arguments_of(sample, widths, turned):
            try:
                _output(sample, arguments)
            except MisfitError:
                raise
            except Exception as error:  # a stranger's forward may raise anything
                first = first or error
                continue
            passed = True
            yield sample, arguments
            break
        if passed:
            return
    if first is not None:
        raise first


def _sample(module: nn.Module, sites: Sites, is_small: bool) -> nn.Module | None:
    """A copy with random weights; a small one has model widths of a few numbers."""
    generator = torch.Generator().manual_seed(0)
    sample = without_hooks(module)
    narrow: dict[int, int] = {}
    layers = {site.linear for site in (*sites.producers, sites.consumer)}
    shapes: dict[str, list[int]] = {}
    for name, parameter in sample.named_parameters(remove_duplicate=False):
        path, shape = name.rpartition(".")[0], list(parameter.shape)
        if is_small and path in layers:
            side = 0 if path == sites.consumer.linear else 1
            if side < len(shape):
                shape[side] = narrow.setdefault(shape[side], 6 + len(narrow))
        shapes[name] = shape
    if sum(map(math.prod, shapes.values())) > LARGEST:
        return None
    configs: dict[int, Any] = {}
    for path, part in sample.named_modules():
        known = {}
        for name, parameter in part._parameters.items():
            if parameter is None or not parameter.is_floating_point():
                known[name] = parameter
                continue
            shape = shapes[f"{path}.{name}" if path else name]
            spread = shape[1] ** -0.5 if len(shape) > 1 else 0.5
            known[name] = torch.randn(shape, generator=generator, dtype=torch.float32) * spread
        buffers = {name: None if b is None else _at_hand(b) for name, b in part._buffers.items()}
        vars(part).update({"_parameters": known, "_buffers": buffers})
        config = vars(part).get("config")
        if hasattr(config, "_attn_implementation"):
            if id(config) not in configs:
                configs[id(config)] = copy.copy(config)
                vars(configs[id(config)])["_attn_implementation_internal"] = "eager"
            vars(part)["config"] = configs[id(config)]
    return sample


def _at_hand(buffer: Tensor) -> Tensor:
    if buffer.is_meta:
        return torch.zeros(buffer.shape, dtype=buffer.dtype)
    return buffer.cpu().float() if buffer.is_floating_point() else buffer.cpu()


def _shape_of(module: nn.Module) -> Any:
    """What a trial depends on: types, shapes and settings of a module and its parts."""
    return tuple(
        (
            path, type(part), tuple((n, None if p is None else (p.shape, p.dtype)) for n, p in part._parameters.items()),
            tuple((n, v) for n, v in vars(part).items() if isinstance(v, bool | int | float | str) and n not in PLACE),
            turned_features(part, 0) if not path else 0,
        )
        for path, part in module.named_modules()
    )  # fmt: skip


PLACE = ("layer_idx", "training", "layer_index", "layer_id", "_is_hf_initialized")
"""Attributes that differ from layer to layer, and that no trial depends on."""
