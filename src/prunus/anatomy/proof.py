"""Trials of attentions: whether a module that is cut as a layout says computes what the masked one does.

A copy of the module with small random weights is run with the arguments that its forward asks for, once masked and once cut.
What is found holds for every module of the same type and shape.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prunus.anatomy.alike import OF_TORCH, Verdicts
from prunus.anatomy.arguments import SHARED, arguments_of
from prunus.anatomy.cutting import cut, mask, silence
from prunus.anatomy.layers import Site, layer_at, resize
from prunus.anatomy.layouts import Layout, Sites
from prunus.anatomy.rotation import turned_features
from prunus.anatomy.trial import MisfitError, trial_numbers, without_hooks

LARGEST = 1 << 24
"""Weights of a copy; a larger one is not tried."""
WIDE = 1 << 20
"""A head width, of which the share that turns is a whole number."""
SILENT = "what a trial run of it gives does not depend on its {}"
_FOUND = Verdicts[tuple[Layout | None, str]]()
"""The layout that holds for a module, or why there is none."""


def settle(layout: Layout, module: nn.Module) -> tuple[Layout, Sites]:
    """The layout that holds for a module, and its sites.

    Raises:
        MisfitError: it does not describe the module; or a trial proves it wrong, or does not prove what is a guess.
    """
    if not layout.is_attention:
        return _first_that_fits(layout, module)
    if not layout.is_tried:
        layout.sites(module)  # says why it cannot be cut
    found = _FOUND.of((layout, turned_features(module, WIDE)), module, partial(_first_that_holds, layout, module))
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


@trial_numbers()
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
        if runs is None:
            try:
                runs = list(_runs(module, sites))
            except Exception as error:  # a stranger's forward may raise anything
                runs, why = [], f"a trial run of it failed ({type(error).__name__}: {error})"
            if layout.is_tried and runs and runs[0].silent:
                return None, SILENT.format(runs[0].silent)
            if not runs and not layout.is_tried:
                return candidate, ""
        if not runs:
            return None, why or "no trial run of it passes: prunus does not know the arguments that it asks for"
        objections = [_objection(candidate, sites, run) for run in runs]
        if not all(objections):
            return candidate, ""
        why = why or objections[0]
    return None, why or "it has no layers for queries, keys, values and output"


class _Run(NamedTuple):
    """A copy of a module, and arguments that it takes."""

    sample: nn.Module
    arguments: dict[str, Any]
    silent: str
    """A layer on which what it gives does not depend; empty where every layer matters."""


class _Given(NamedTuple):
    """What a run gives."""

    first: Tensor
    all: list[Tensor | None]
    """With what stands in for tensors, and what it leaves at the module."""

    def is_same(self, other: _Given) -> bool:
        """Whether another run gives the same bits."""
        pairs = zip(self.all, other.all, strict=True)
        return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def _objection(layout: Layout, sites: Sites, run: _Run) -> str:
    """What a trial says against a layout."""
    generator = torch.Generator().manual_seed(1)
    kept = torch.randperm(sites.channels, generator=generator)[: max(1, sites.channels // 2)].sort().values
    masked, narrow = without_hooks(run.sample), without_hooks(run.sample)
    silence(masked, sites, kept)
    try:
        if len(kept) < sites.channels:
            cut(narrow, layout, sites, kept, {})
        whole, expected, found = (_outputs(one, run.arguments) for one in (run.sample, masked, narrow))
    except Exception as error:  # a stranger's forward may raise anything
        return f"a trial run of it failed once it was narrow ({type(error).__name__}: {error})"
    if len(kept) < sites.channels and _is_close(whole.first, expected.first):
        return SILENT.format("channels")
    return "" if _agree(expected, found) else "a trial run of it, narrowed, does not give what the masked one gives"


def _silent(sample: nn.Module, sites: Sites, arguments: dict[str, Any]) -> str:
    """A layer on which what a run gives does not depend, or on one of the heads of a layer that makes queries, keys and values together; a
    trial proves nothing of it. Empty where all matter."""
    whole = _outputs(sample, arguments)
    for site in sites.producers:
        is_fused = site.repeats > sites.consumer.repeats
        features = torch.arange(site.repeats).repeat_interleave(sites.features_per_repeat(site))
        for repeat in range(site.repeats) if is_fused else (None,):
            without = without_hooks(sample)
            mask(without, site, torch.zeros(len(features)) if repeat is None else (features != repeat).float())
            if whole.is_same(_outputs(without, arguments)):
                return site.linear
    return ""


def _agree(masked: _Given, narrow: _Given) -> bool:
    """Whether all that they give is the same, or not given by the narrow one; what they give first must be finite."""
    if len(masked.all) != len(narrow.all) or not bool(masked.first.isfinite().all()):
        return False
    pairs = zip(masked.all, narrow.all, strict=True)
    return all(b is None or (a is not None and _is_close(a, b)) for a, b in pairs)


def _is_close(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    finite = first.isfinite()
    if not torch.equal(finite, second.isfinite()):
        return False
    first, second = first[finite], second[finite]
    return first.numel() == 0 or bool((first - second).abs().max() <= 1e-5 * first.abs().max().clamp_min(1.0))


def _outputs(module: nn.Module, arguments: dict[str, Any]) -> _Given:
    """What a run gives, and the tensors that it leaves at the module.

    Raises:
        MisfitError: it hands its keys and values to other layers, or gives nothing.
    """
    shared: dict[Any, Any] = {}
    given = {**arguments, SHARED: shared} if SHARED in arguments else dict(arguments)
    found = list(_tensors(module(**given)))
    if shared:
        raise MisfitError("other layers use its keys and values")
    left = [value for part in module.modules() for name, value in vars(part).items() if name not in OF_TORCH]
    first = next((tensor for tensor in found if tensor is not None), None)
    if first is None:
        raise MisfitError("a trial run of it gives nothing")
    return _Given(first, [*found, *(one for one in left if isinstance(one, Tensor))])


def _tensors(found: Any) -> Iterator[Tensor | None]:
    if found is None:
        yield None
    elif isinstance(found, Tensor):
        yield found.float()
    elif isinstance(found, Mapping):
        yield from _tensors(list(found.values()))
    elif isinstance(found, tuple | list):
        for one in found:
            yield from _tensors(one)


def _runs(module: nn.Module, sites: Sites) -> Iterator[_Run]:
    """Copies of a module, each with arguments that it takes, such that everything matters if there are any: of small model widths, or
    else of its own. Where buffers have no values, both with zeros and with ones."""
    turned = turned_features(module, len(sites.order) or sites.channels * sites.span)
    first: Exception | None = None
    fills = (0, 1) if any(buffer.is_meta for buffer in module.buffers()) else (0,)
    for is_small in (True, False):
        passed = []
        for fill in fills:
            sample = _sample(module, sites, is_small, fill)
            if sample is None:
                continue
            widths = [_width_in(sample, site) for site in sites.producers]
            for arguments in arguments_of(sample, widths, turned):
                try:
                    passed.append(_Run(sample, arguments, _silent(sample, sites, arguments)))
                except MisfitError:
                    raise
                except Exception as error:  # a stranger's forward may raise anything
                    first = first or error
                    continue
                if not passed[-1].silent:
                    break
        if passed:
            yield from [run for run in passed if not run.silent] or passed[:1]
            return
    if first is not None:
        raise first


def _width_in(module: nn.Module, site: Site) -> int:
    """Features that a layer reads."""
    layer = layer_at(module, site)
    return layer.weight.shape[1 - layer.side]


def _sample(module: nn.Module, sites: Sites, is_small: bool, fill: int) -> nn.Module | None:
    """A copy with random weights; a small one has model widths of a few numbers.

    Args:
        fill: what buffers that have no values hold.
    """
    generator = torch.Generator().manual_seed(0)
    sample = without_hooks(module)
    narrow: dict[int, int] = {}
    others = {f"{site.linear}.weight": 1 - site.side for site in (*sites.producers, sites.consumer)} | {
        f"{sites.consumer.linear}.bias": 0
    }
    shapes: dict[str, list[int]] = {}
    for name, parameter in sample.named_parameters(remove_duplicate=False):
        shape = list(parameter.shape)
        if is_small and name in others:
            shape[others[name]] = narrow.setdefault(shape[others[name]], 6 + len(narrow))
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
        buffers = {name: None if b is None else _at_hand(b, fill) for name, b in part._buffers.items()}
        vars(part).update({"_parameters": known, "_buffers": buffers})
        config = vars(part).get("config")
        if hasattr(config, "_attn_implementation"):
            if id(config) not in configs:
                configs[id(config)] = copy.copy(config)
                vars(configs[id(config)])["_attn_implementation_internal"] = "eager"
            vars(part)["config"] = configs[id(config)]
    for site in (*sites.producers, sites.consumer):
        resize(layer_at(sample, site))
    return sample


def _at_hand(buffer: Tensor, fill: int) -> Tensor:
    if buffer.is_meta:
        return torch.full(buffer.shape, fill, dtype=buffer.dtype)
    return buffer.cpu().float() if buffer.is_floating_point() else buffer.cpu()
