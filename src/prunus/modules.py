"""Modules for a while as they are needed: with another forward, in eval mode, without key-value caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another forward for one module object, whatever hooks already replaced it."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards every module is in the mode that it was in."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Eval mode and no key-value caches, which a block that runs twice would fill twice."""
    with caches_kept(model) as configs, evaluating(model):
        for config in configs:
            config.use_cache = False
        yield


@contextmanager
def caches_kept(model: nn.Module) -> Iterator[list[Any]]:
    """The configs that say a key-value cache is used; when the context ends, all configs say of it what they did before."""
    held: list[Any] = [vars(module).get("config") for module in model.modules()]
    configs = list({id(config): config for config in held if config is not None}.values())
    before = [vars(config).get("use_cache", MISSING) for config in configs]
    try:
        yield [config for config, was in zip(configs, before, strict=True) if was is not MISSING and was]
    finally:
        for config, was in zip(configs, before, strict=True):
            if was is not MISSING:
                config.use_cache = was
            elif "use_cache" in vars(config):
                del config.use_cache


MISSING: Any = object()
