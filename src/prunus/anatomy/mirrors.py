"""Momentum (EMA) copies: modules that keep the shape of others, carry no gates and are not pruned by themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import nn

from prunus.errors import PrunusError

MIRRORS = "prunus_mirrors"
"""Attribute of a model, or of its class or config, that says which of its modules are copies."""
Model = TypeVar("Model", bound=nn.Module)


def mirrored(model: Model, mirrors: Mapping[str, str]) -> Model:
    """Says once, for whatever is done to a model, which of its modules are momentum copies: {path of the copy: path of the
    original}. Its config says it, too, so that folders need not be told.

    A copy carries no gates, is narrowed with its original, and is left alone by unstructured pruning.

    Returns:
        The model.

    Raises:
        PrunusError: a path does not exist, or the two modules do not have the same parameters.

    Examples:
        >>> model = mirrored(model, {"vision_model_m": "vision_model"})
        >>> mirrors_of(model)
        {'vision_model_m': 'vision_model'}
    """
    check_mirrors(model, mirrors)
    setattr(model, MIRRORS, dict(mirrors))
    if hasattr(model, "config"):
        setattr(model.config, MIRRORS, dict(mirrors))
    return model


def mirrors_of(model: nn.Module, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """The mirrors that somebody gave, else those that the model, its class or its config declares.

    Raises:
        PrunusError: as `mirrored`. What only the config declares need not be there: parts share it with their whole.
    """
    found = declared_mirrors(model) if given is None else dict(given)
    check_mirrors(model, found)
    return found


def declared_mirrors(model: nn.Module) -> dict[str, str]:
    """What a model, its class or its config declares, of whatever shapes.

    Raises:
        PrunusError: the config's entry is no such thing.
    """
    own = getattr(model, MIRRORS, None)
    if own is not None:
        return dict(own)
    written = getattr(getattr(model, "config", None), MIRRORS, None) or {}
    if not isinstance(written, Mapping) or not all(isinstance(path, str) for path in written.values()):
        raise PrunusError(f"config.{MIRRORS}", written, "it must be paths of copies, each with that of its original")
    paths = {path for path, _ in model.named_modules()} if written else set()
    return {copy: original for copy, original in written.items() if copy in paths and original in paths}


def check_mirrors(model: nn.Module, mirrors: Mapping[str, str]) -> None:
    """Refuses mirrors that are none.

    Raises:
        PrunusError: as `mirrored`.
    """
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


def is_inside(path: str, roots: Iterable[str]) -> bool:
    """Whether a path is one of these modules, or lies in one."""
    return any(path == root or path.startswith(f"{root}.") for root in roots)


def copies_of(path: str, mirrors: Mapping[str, str]) -> tuple[str, ...]:
    """Paths of the copies of a module."""
    return tuple(
        copy + path.removeprefix(original) for copy, original in mirrors.items() if is_inside(path, [original])
    )
