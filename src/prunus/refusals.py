"""What a model must not be when its weights are to be read or changed, said by name and reason."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from prunus.errors import PrunusError


class Named(Protocol):
    """A weight by its name and that of the parameter it lies in."""

    @property
    def name(self) -> str: ...
    @property
    def parameter(self) -> str: ...


def refuse_wrapped(model: nn.Module) -> None:
    """Refuses what is no plain model: compiled, or in a wrapper of several devices.

    Raises:
        PrunusError: with the way to the model inside.
    """
    if not isinstance(model, nn.Module):
        raise PrunusError("model", type(model).__name__, "give a model, a torch.nn.Module")
    name = type(model).__name__
    if hasattr(model, "_orig_mod"):
        raise PrunusError("model", name, "it is compiled; give the model itself, model._orig_mod")
    for path, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise PrunusError(
                "model", f"{name}: {path or 'all of it'}", "it is compiled, so nothing can be seen of what goes on in it; "
                "do this first and compile afterwards",
            )  # fmt: skip
    if name in WRAPPERS and hasattr(model, "module"):
        raise PrunusError("model", name, "it is a wrapper of several devices; give the model itself, model.module")


WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine")


def refuse_weights(model: nn.Module, chosen: Iterable[Named]) -> None:
    """Refuses weights whose numbers cannot be read and written as they are.

    Raises:
        PrunusError: one is quantised, sharded, computed by another tool, not finite, or not in memory.
    """
    seen: set[str] = set()
    for matrix in chosen:
        if matrix.parameter in seen:
            continue
        seen.add(matrix.parameter)
        try:
            weight = model.get_parameter(matrix.parameter)
        except AttributeError:
            raise PrunusError(
                "model", matrix.name, "its weight is no parameter but computed by another tool (torch.nn.utils.prune, weight "
                "norm); make that permanent first, or exclude this layer",
            ) from None  # fmt: skip
        refuse_weight(matrix.name, weight)


def refuse_weight(name: str, weight: Tensor) -> None:
    """Refuses a weight whose numbers cannot be read and written as they are.

    Raises:
        PrunusError: it is quantised, sharded, not finite, or not in memory.
    """
    kind = type(weight).__name__
    if weight.device.type == "meta":
        raise PrunusError(
            "model", name, "its weight is not in memory (offloaded or built without weights); "
            "prune the saved folder with prune_folder, which reads and writes one block at a time",
        )  # fmt: skip
    if "DTensor" in kind:
        raise PrunusError("model", name, "its weight is sharded over processes; gather it first")
    if not is_plain(weight):
        raise PrunusError(
            "model", name, f"its weight is quantised or otherwise packed by another tool ({kind}, {weight.dtype}); prune the model "
            "before it is quantised, or exclude this layer",
        )  # fmt: skip
    if weight.numel() and not all(bool(torch.isfinite(bound)) for bound in torch.aminmax(weight)):
        raise PrunusError("model", name, "its weight holds NaN or infinity; look at how the model was made or loaded")


def is_plain(weight: Tensor) -> bool:
    """Whether a weight lies in memory as numbers of 16 bits or more, one for each of its elements."""
    own = type(weight) is Tensor or issubclass(type(weight), nn.Parameter)
    return own and not weight.is_meta and weight.is_floating_point() and weight.element_size() > 1
