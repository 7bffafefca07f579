"""What a model must not be when its weights are to be read, cut or changed and its blocks are to be listened to, said by name.

The one place that knows what stands around a model and which weights are unusable.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunus.errors import PrunusError


class Held(Protocol):
    """A matrix that lies in a parameter."""

    @property
    def name(self) -> str: ...
    @property
    def parameter(self) -> str: ...


WRAPPERS = {"OptimizedModule": "_orig_mod", "DistributedDataParallel": "module", "DataParallel": "module"}
"""Type of a wrapper → where it keeps the model."""
SHARDED = ("FullyShardedDataParallel",)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of `torch.compile`, `DistributedDataParallel` and `DataParallel`; another model is returned as it is.

    Raises:
        PrunusError: it is no model, or its weights are sharded by FSDP, so that no process has them all.
    """
    if not isinstance(model, nn.Module):
        raise PrunusError("model", type(model).__name__, "give a model, a torch.nn.Module")
    for module in model.modules():
        if type(module).__name__ in SHARDED:
            raise PrunusError(
                "model", type(module).__name__, "FSDP has sharded its weights; give the model before it is wrapped"
            )
    while type(model).__module__.startswith("torch.") and type(model).__name__ in WRAPPERS:
        model = getattr(model, WRAPPERS[type(model).__name__])
    return model


def plain_model(model: nn.Module) -> nn.Module:
    """As `unwrapped`, for listening to what goes on inside.

    Raises:
        PrunusError: as `unwrapped`; or it, or a part of it, was compiled in place.
    """
    inner = unwrapped(model)
    for path, module in inner.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise PrunusError(
                "model", f"{type(inner).__name__}: {path or 'all of it'}", "it is compiled, so nothing can be seen of what goes on "
                "in it; do this first and compile afterwards",
            )  # fmt: skip
    return inner


def is_absent(weight: Tensor) -> bool:
    """Whether the numbers of a weight are not in memory: it is on `meta`, or its storage was emptied."""
    return weight.is_meta or bool(packed(weight) is None and weight.numel() and not weight.untyped_storage().nbytes())


def packed(weight: Tensor) -> str | None:
    """Why a weight is not one number of 16 bits or more for each of its elements, wherever it lies; None if it is."""
    kind = type(weight).__name__
    if kind == "DTensor" or hasattr(weight, "ds_id"):
        return f"its weight is sharded over processes ({kind}); do it before the model is sharded"
    if isinstance(weight, nn.UninitializedParameter):
        return "its weight has no shape yet; run the model once"
    if type(weight) not in (Tensor, nn.Parameter) or weight.dtype.itemsize < 2 or not weight.is_floating_point():
        stored = kind if type(weight) not in (Tensor, nn.Parameter) else str(weight.dtype)
        return (
            f"its weight is quantised or packed ({stored}); do it to the full-precision model and quantise afterwards"
        )
    return None


def unusable(weight: Tensor) -> str | None:
    """Why the numbers of a weight cannot be read and cut here, in words; None if they can."""
    if packed(weight) is None and is_absent(weight):
        return "its weight is not in memory (offloaded or built without weights); load the model whole"
    return packed(weight)


def refuse_weight(name: str, weight: Tensor) -> None:
    """Refuses one weight whose numbers cannot be read and written as they are.

    Raises:
        PrunusError: it is quantised, sharded, not finite, or not in memory.
    """
    reason, instead = unusable(weight), "exclude this layer"
    if reason is not None and packed(weight) is None:
        instead = "prune the saved folder with prune_folder, which reads and writes one block at a time"
    if reason is None and weight.numel() and not all(bool(torch.isfinite(bound)) for bound in torch.aminmax(weight)):
        reason = "its weight holds NaN or infinity; look at how the model was made or loaded"
    if reason is not None:
        raise PrunusError("model", name, f"{reason}, or {instead}")


def expect(field: str, value: object, kind: Any, example: str) -> None:
    """Refuses an argument of another type than the one that is meant.

    Raises:
        PrunusError: the remedy is the example.
    """
    if not isinstance(value, kind):
        raise PrunusError(field, value, f"give {example}")


def refuse_weights(model: nn.Module, chosen: Iterable[Held]) -> None:
    """Refuses the first of these matrices whose weight `refuse_weight` refuses, or another tool computes."""
    names: dict[str, str] = {}
    for matrix in chosen:
        names.setdefault(matrix.parameter, matrix.name)
    for parameter, name in names.items():
        try:
            weight = model.get_parameter(parameter)
        except AttributeError:
            raise PrunusError(
                "model", name, "its weight is no parameter but computed by another tool (torch.nn.utils.prune, weight norm); "
                "make that permanent first, or exclude this layer",
            ) from None  # fmt: skip
        refuse_weight(name, weight)


def refuse_unusable(model: nn.Module, path: str) -> None:
    """Refuses a module, by path, one of whose weights cannot be read and cut here.

    Raises:
        PrunusError: naming the module and the reason.
    """
    for name, module in model.get_submodule(path).named_modules(prefix=path):
        weights = [weight for weight in module._parameters.values() if weight is not None]
        reason = next((why for why in map(unusable, weights) if why is not None), None)
        if reason is None and not weights and isinstance(getattr(module, "qweight", None), Tensor):
            reason = f"its weight is quantised ({type(module).__name__}); do it to the full-precision model and quantise afterwards"
        if reason is not None:
            raise PrunusError("model", name or type(module).__name__, reason)
