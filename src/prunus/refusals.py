"""What a model must not be when its weights are to be read or changed and its blocks are to be listened to, said by name."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from prunus.anatomy import Matrix
from prunus.anatomy.wrappers import unusable, unwrapped
from prunus.errors import PrunusError


def plain_model(model: nn.Module) -> nn.Module:
    """The model inside of wrappers such as `torch.compile` and `DataParallel`; its weights are the same.

    Raises:
        PrunusError: it is no model, it is sharded, or it, or a part of it, was compiled in place.
    """
    inner = unwrapped(model)
    for path, module in inner.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise PrunusError(
                "model", f"{type(inner).__name__}: {path or 'all of it'}", "it is compiled, so nothing can be seen of what goes on "
                "in it; do this first and compile afterwards",
            )  # fmt: skip
    return inner


def refuse_weights(model: nn.Module, chosen: Iterable[Matrix]) -> None:
    """Refuses weights whose numbers cannot be read and written as they are.

    Raises:
        PrunusError: one is quantised, sharded, computed by another tool, not finite, or not in memory.
    """
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


def refuse_weight(name: str, weight: Tensor) -> None:
    """Refuses one weight, as `refuse_weights`."""
    if weight.is_meta:
        raise PrunusError(
            "model", name, "its weight is not in memory (offloaded or built without weights); "
            "prune the saved folder with prune_folder, which reads and writes one block at a time",
        )  # fmt: skip
    reason = unusable(weight)
    if reason is None and weight.numel() and not all(bool(torch.isfinite(bound)) for bound in torch.aminmax(weight)):
        reason = "its weight holds NaN or infinity; look at how the model was made or loaded"
    if reason is not None:
        raise PrunusError("model", name, f"{reason}, or exclude this layer")
