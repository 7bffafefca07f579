"""Verdicts of trials, each found once for all modules that are alike: of the same types, shapes and settings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

FoundT = TypeVar("FoundT")

PLACE = ("layer_idx", "layer_index", "layer_id", "training", "_is_hf_initialized", "_hf_hook", "_old_forward")
"""Attributes that differ from layer to layer, or say where weights lie, and that no trial depends on."""
ABOUT = (
    "_name_or_path", "_commit_hash", "transformers_version", "architectures", "id2label", "label2id", "prunus", "prunus_sparsity",
)  # fmt: skip
"""Entries of configs that say where a model comes from and what was done to it."""
OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes that every module has."""
DEEPEST = 4
"""Attributes of attributes that are looked at."""


class Verdicts(Generic[FoundT]):
    """What trials have found. A module whose forward was replaced is tried anew."""

    def __init__(self) -> None:
        self._known: dict[Hashable, FoundT] = {}

    def of(self, about: Hashable, module: nn.Module, find: Callable[[], FoundT]) -> FoundT:
        """The verdict on a module.

        Args:
            about: what is tried, such as a layout.
            find: tries it.
        """
        if any(_has_another_forward(part) for part in module.modules()):
            return find()
        key = about, traits(module)
        if key not in self._known:
            self._known[key] = find()
        return self._known[key]


def traits(module: nn.Module) -> Hashable:
    """What a trial of a module may depend on: of each of its parts the type, the shapes and settings. Buffers without values are told from
    others."""
    return tuple(
        (
            path, type(part),
            tuple((name, _frozen(p)) for name, p in part._parameters.items()),
            tuple((name, _frozen(b), b is not None and b.is_meta) for name, b in part._buffers.items()),
            tuple((name, _frozen(v)) for name, v in vars(part).items() if name not in OF_TORCH and name not in PLACE),
        )
        for path, part in module.named_modules()
    )  # fmt: skip


def _has_another_forward(part: nn.Module) -> bool:
    forward = vars(part).get("_old_forward", vars(part).get("forward"))
    return forward is not None and getattr(forward, "__func__", None) is not type(part).forward


@functools.singledispatch
def _frozen(value: Any, depth: int = 0) -> Hashable:
    """A value that is equal for things which compute the same, and holds none of them."""
    if depth == DEEPEST:
        return (type(value),)
    return type(value), _frozen(vars(value), depth + 1) if hasattr(value, "__dict__") else repr(value)


def _itself(value: Hashable, depth: int = 0) -> Hashable:
    return value


for _plain in (type(None), int, float, str, type, BuiltinFunctionType, torch.dtype, torch.device):
    _frozen.register(_plain, _itself)


@_frozen.register
def _of_tensor(value: Tensor, depth: int = 0) -> Hashable:
    return value.shape, value.dtype


@_frozen.register
def _of_module(value: nn.Module, depth: int = 0) -> Hashable:
    return (type(value),)


@_frozen.register(Mapping)
def _of_mapping(value: Mapping[Any, Any], depth: int = 0) -> Hashable:
    return tuple((_frozen(key, depth), _frozen(held, depth + 1)) for key, held in value.items())


@_frozen.register(tuple)
@_frozen.register(list)
def _of_sequence(value: Sequence[Any], depth: int = 0) -> Hashable:
    return tuple(_frozen(held, depth + 1) for held in value)


@_frozen.register(set)
@_frozen.register(frozenset)
def _of_set(value: Set[Any], depth: int = 0) -> Hashable:
    return frozenset(_frozen(held, depth + 1) for held in value)


@_frozen.register
def _of_config(value: PreTrainedConfig, depth: int = 0) -> Hashable:
    told = {name: held for name, held in vars(value).items() if name not in ABOUT}
    return type(value), _frozen(told, depth)


@_frozen.register
def _of_function(value: FunctionType, depth: int = 0) -> Hashable:
    return value.__code__, _frozen([value.__defaults__, value.__kwdefaults__, *_held(value)], depth)


@_frozen.register
def _of_method(value: MethodType, depth: int = 0) -> Hashable:
    return _frozen(value.__func__, depth)


@_frozen.register
def _of_partial(value: functools.partial, depth: int = 0) -> Hashable:  # type: ignore[type-arg]
    return _frozen([value.func, value.args, value.keywords], depth)


def _held(function: FunctionType) -> Iterator[Any]:
    """What a function holds of what was around it."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # it was never set
            yield cell.cell_contents
