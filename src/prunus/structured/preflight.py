"""What a search refuses before its first step, each with the reason."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from prunus.anatomy import Anatomy, Unit, gated
from prunus.errors import PrunusError
from prunus.parallel import is_sharded, local
from prunus.refusals import plain_model, unusable, unwrapped
from prunus.structured.gates import gates_of

REPLICAS = "its replicas know nothing of each other's gates; start one process per device (torchrun)"
COMPILED = "compiled code passes over the gates; search first, and compile the extracted model"
SHARDED = "under the Trainer a search needs whole weights (DDP); of a model under fully_shard (FSDP2), train it in a loop of your own, with Search"


def searchable(model: nn.Module) -> nn.Module:
    """The model that a search can watch: what stands inside of a DistributedDataParallel, else the model itself.

    Raises:
        PrunusError: it is compiled, sharded or replicated in one process, or another search is on.
    """
    if isinstance(model, nn.DataParallel):
        raise PrunusError("model", "DataParallel", REPLICAS)
    outer = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    if unwrapped(outer) is not outer:
        raise PrunusError("model", type(outer).__name__, COMPILED)
    model = plain_model(outer)
    if any(True for _ in gates_of(model)):
        raise PrunusError("model", type(model).__name__, "another search is on it; call close() on that one first")
    return model


def check_callable(**given: object) -> None:
    """Refuses what is not None and cannot be called.

    Raises:
        PrunusError: naming it.
    """
    for name, call in given.items():
        if call is not None and not callable(call):
            raise PrunusError(name, type(call).__name__, f"give what can be called, such as {name}=lambda: …")


def check_units_are_there(model: nn.Module, parts: Anatomy) -> None:
    """Says of a model under adapters that these are why nothing in it can be searched.

    Raises:
        PrunusError: see above.
    """
    if not parts.units and has_adapters(model):
        raise PrunusError("model", type(model).__name__, f"nothing in it can be pruned: {parts.unmapped[0].reason}")


def check_can_be_read(model: nn.Module, units: Iterable[Unit], by_gradient: bool) -> None:
    """Refuses units of which a method could not read its evidence: that needs every weight and bias of their producers.

    Args:
        by_gradient: whether the evidence is the gradient of a gate.

    Raises:
        PrunusError: some of them are not in memory, sharded otherwise than by rows, or not all sharded, or, if their gradients are needed,
            frozen.
    """
    frozen: dict[str, str] = {}
    sharded: dict[bool, str] = {}
    total = 0
    for unit in units:
        total += 1
        for site, layer in gated(model, unit):
            for name, parameter in layer.parameters.items():
                part = site.linear if layer.name == "weight" else site.linear.rpartition(".")[0]
                where = ".".join(filter(None, (unit.path, part, name)))
                reason = unusable(local(parameter))
                sharded.setdefault(is_sharded(parameter), where)
                if reason is not None:
                    raise PrunusError("model", where, reason)
                if by_gradient and not parameter.requires_grad:
                    frozen.setdefault(unit.name, where)
    if len(sharded) > 1:
        raise PrunusError(
            "model", sharded[False], "it is whole, and other weights are sharded; call fully_shard on the model itself, too, or exclude the unit"
        )  # fmt: skip
    if frozen:
        name, where = next(iter(frozen.items()))
        why = "only its adapters train; search while the weights train, and adapt the extracted model" if has_adapters(model) else (
            "the gradient of a gate is read off all weights and biases that it multiplies; let them train, or exclude the unit"
        )  # fmt: skip
        raise PrunusError("gradient", name, f"{where} is frozen (so in {len(frozen)} of {total} units): {why}")


def refuse_adapters(model: nn.Module) -> None:
    """Refuses a model that adapters have been put on since it was read: no gate is on them.

    Raises:
        PrunusError: see above.
    """
    if has_adapters(model):
        raise PrunusError(
            "model",
            type(model).__name__,
            "adapters are on it, which no gate multiplies; search without them, and adapt the extracted model",
        )


def has_adapters(model: nn.Module) -> bool:
    """Whether peft has put adapters into a model, and so frozen its weights."""
    return bool(getattr(model, "peft_config", None))
