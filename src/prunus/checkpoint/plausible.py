"""Configs that cannot be meant, said before anything is built from them, and transformers' own complaints as one clear error."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
from torch import Tensor, nn
from torch.nn.modules import module as registration
from transformers import CONFIG_MAPPING, AutoConfig

from prunus.errors import PrunusError

LAYERS = re.compile(r"(layers|n_layer|depths?|blocks)$")
LAYER_LIMIT = 2_000
"""Sixteen times the deepest default that transformers has."""
COUNT = re.compile(r"^(num|n)_")
COUNT_LIMIT = 1_000_000
SIZE = re.compile(
    r"(_heads|_layers|_dim|_channels|^d_model|^d_ff|^d_kv|(hidden|intermediate|vocab|image|patch|head)_size)$"
)
WIDTHS = frozenset({"hidden_size", "intermediate_size", "vocab_size", "num_attention_heads"})
"""Never zero, as some other sizes are."""
DEPTH_LIMIT = 20
"""Of configs within configs."""
FILE_LIMIT = 100 << 20
MODULE_LIMIT = 40_000
"""A module takes a tenth of a millisecond to build even without weights; models of a hundred layers have some thousands."""


def read_config(path: Path) -> dict[str, Any]:
    """The object in a `config.json`, checked as `check_config` does.

    Raises:
        PrunusError: it cannot be read, is no JSON object, or cannot be meant.
    """
    if not path.is_file():
        raise PrunusError("model", str(path), "there is no such file; give a folder made by save_pretrained")
    try:
        if path.stat().st_size > FILE_LIMIT:
            raise PrunusError("model", str(path), "no config is that large")
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise PrunusError("model", str(path), f"it is no JSON ({reason(error)}); save the model again") from None
    check_config(config, str(path))
    return dict(config)


def check_config(config: object, source: str) -> None:
    """Refuses what transformers would not: numbers that are none, sizes below zero, thousands of layers.

    Args:
        source: a file or recipe field, to name in errors.

    Raises:
        PrunusError: naming the entry.
    """
    if not isinstance(config, Mapping):
        raise PrunusError(source, config, "a config is an object with model_type and architectures")
    for name, kinds, meant in (
        ("model_type", str, "one name, such as blip"), ("architectures", list | tuple, "a list of class names")
    ):  # fmt: skip
        value = config.get(name)
        if value is not None and not isinstance(value, kinds):
            raise PrunusError(f"{source}: {name}", value, f"it must be {meant}")
    if not all(isinstance(name, str) for name in config.get("architectures") or ()):
        raise PrunusError(f"{source}: architectures", config["architectures"], "it must be a list of class names")
    _check_entries(config, source, 0)


def _check_entries(config: Mapping[Any, Any], source: str, depth: int) -> None:
    if depth > DEPTH_LIMIT:
        raise PrunusError(source, type(config).__name__, "no config lies so deep in others")
    heads, shared = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(shared, int) and 0 < heads < shared:
        raise PrunusError(f"{source}: num_key_value_heads", shared, f"there are only {heads} heads to share them")
    for name, value in config.items():
        where = f"{source}: {name}" if depth == 0 else f"{source}.{name}"
        if not isinstance(name, str | int):
            raise PrunusError(where, name, "names are text")
        if isinstance(value, Mapping):
            _check_entries(value, where, depth + 1)
        elif not isinstance(value, str | int | float | list | tuple | None):
            raise PrunusError(where, value, "it is nothing that JSON can hold; write text or a number")
        for number in value if isinstance(value, list | tuple) else [value]:
            _check_number(str(name), number, where, within=number is not value)


def _check_number(name: str, number: object, where: str, within: bool) -> None:
    """One number; `within` a list, where infinity stands for no limit and layers are counted from the end."""
    if isinstance(number, float) and (math.isnan(number) or (math.isinf(number) and not within)):
        raise PrunusError(where, number, "it must be a finite number")
    if not isinstance(number, int) or isinstance(number, bool):
        return
    limit = LAYER_LIMIT if LAYERS.search(name) else COUNT_LIMIT if COUNT.search(name) else None
    if limit is not None and number > limit:
        raise PrunusError(where, number, f"no model has so many; take at most {limit:,}")
    if number < 0 and not within and SIZE.search(name):
        raise PrunusError(where, number, "it must not be negative")
    if number == 0 and name in WIDTHS:
        raise PrunusError(where, number, "it must be at least 1")


@contextmanager
def bounded(elements: float, remedy: str, field: str = "model", value: object = "weights") -> Iterator[None]:
    """Stops the construction of a model that grows beyond so many elements, or beyond 40,000 modules, while it is built.

    Raises:
        PrunusError: with `remedy`.
    """
    here, seen = threading.get_ident(), set[tuple[int, str]]()
    built = {"elements": 0, "modules": 0}

    def weigh(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        if tensor is None or threading.get_ident() != here or (id(module), name) in seen:
            return
        seen.add((id(module), name))
        built["elements"] += tensor.numel()
        if built["elements"] > elements:
            raise PrunusError(field, value, remedy)

    def count(module: nn.Module, name: str, inner: nn.Module | None) -> None:
        built["modules"] += threading.get_ident() == here
        if built["modules"] > MODULE_LIMIT:
            raise PrunusError(field, value, f"it has more than {MODULE_LIMIT:,} modules; no model has so many layers")

    with ExitStack() as hooks:
        hooks.enter_context(registration.register_module_parameter_registration_hook(weigh))
        hooks.enter_context(registration.register_module_buffer_registration_hook(weigh))
        hooks.enter_context(registration.register_module_module_registration_hook(count))
        yield


def memory() -> int:
    """Bytes of memory that this machine has."""
    return int(psutil.virtual_memory().total)


@contextmanager
def understood(source: str, config: Mapping[str, Any] | None = None, doing: str = "build the model") -> Iterator[None]:
    """What transformers raises about a file or config as a `PrunusError`, which names the entry of the config if it can.

    Raises:
        PrunusError: whatever went wrong; the original error is its cause.
    """
    try:
        yield
    except PrunusError:
        raise
    except Exception as error:
        entry = _blamed(config or {}, error)
        field, value = (source, None) if entry is None else (f"{source}: {entry[0]}", entry[1])
        raise PrunusError(field, value, f"transformers cannot {doing} ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """The first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[:2])[:300]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _blamed(config: Mapping[str, Any], error: Exception) -> tuple[str, Any] | None:
    """The entry of a config that an error is about: of another type than the default, no size, or named by it."""
    entries = dict(_flat(config))
    if isinstance(config.get("model_type"), str) and config["model_type"] not in CONFIG_MAPPING:
        return "model_type", config["model_type"]
    words = re.findall(r"\w+", str(error))
    quoted = re.search(r"field '(\w+)'", str(error))
    if quoted is not None:
        words.insert(0, quoted[1])
    defaults = _defaults(config)
    for path, value in entries.items():
        usual = defaults.get(path)
        if usual is not None and value is not None and _unlike(value, usual):
            return path, value
        if value == 0 and usual != 0 and SIZE.search(path):
            return path, value
    named = next(
        (p for word in words for p, v in entries.items() if word in (p.rpartition(".")[2], v) and len(word) > 4), None
    )
    return None if named is None else (named, entries[named])


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        yield f"{prefix}{name}", value
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return dict(_flat(AutoConfig.for_model(config["model_type"]).to_dict()))
    except Exception:  # a type that transformers does not know has no defaults
        return {}


def _unlike(value: object, usual: object) -> bool:
    numbers = (int, float)
    if isinstance(value, bool) or isinstance(usual, bool):
        return isinstance(value, bool) != isinstance(usual, bool)
    if isinstance(value, numbers) and isinstance(usual, numbers):
        return isinstance(value, float) and isinstance(usual, int)
    if isinstance(value, list | tuple) and isinstance(usual, list | tuple):
        return False
    return type(value) is not type(usual)
