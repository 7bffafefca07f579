"""What stands around a model, and weights that cannot be cut: wrappers, quantised, sharded and absent weights."""

from __future__ import annotations

from torch import Tensor, nn

from prunus.errors import PrunusError

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


def unusable(weight: Tensor) -> str | None:
    """Why the numbers of a weight cannot be read and cut here, in words; None if they can."""
    if packed(weight) is None and weight.device.type == "meta":
        return "its weight is not in memory (offloaded or built without weights); load the model whole"
    return packed(weight)


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
            raise PrunusError("model", name, reason)
