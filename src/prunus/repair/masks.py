"""Which weights of a pruned model are zero, kept at one bit a weight, and held while something trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from prunus.anatomy import Place, matrices, place_of, weight_of
from prunus.errors import PrunusError
from prunus.parallel import everyones, has_shards, is_sharded, local
from prunus.unstructured import sparsity_of

BITS = tuple(1 << bit for bit in range(8))


class BitMask:
    """A boolean tensor at one bit an element: True where a weight stays."""

    def __init__(self, kept: Tensor):
        self.shape = kept.shape
        flat = nn.functional.pad(kept.flatten(), (0, -kept.numel() % 8))
        powers = torch.tensor(BITS, dtype=torch.uint8, device=kept.device)
        self.packed = (flat.view(-1, 8) * powers).sum(1, dtype=torch.uint8)

    def unpack(self, device: torch.device | None = None) -> Tensor:
        """The boolean tensor, made anew."""
        return unpack(self.packed.to(device or self.packed.device), self.shape)

    @property
    def bytes(self) -> int:
        return self.packed.numel()


def unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """A boolean tensor from its bytes, the lowest bit first."""
    powers = torch.tensor(BITS, dtype=torch.uint8, device=packed.device)
    return packed[:, None].bitwise_and(powers).ne(0).flatten()[: shape.numel()].view(shape)


def zeros_of(model: nn.Module) -> dict[str, BitMask]:
    """The zero pattern of every pruned matrix (of a sharded one, of its rows in this process, which may have none): those that the model's
    record of pruning names, or, without a record, those that have zeros.

    Raises:
        PrunusError: nothing in the model is pruned.
    """
    record = sparsity_of(model)
    named = [m.name for m in matrices(model, any_type=has_shards(model))] if record is None else list(record.matrices)
    found = {name: BitMask(_weight_here(model, name) != 0) for name in named}
    with_zeros = {
        name for names in everyones([n for n, mask in found.items() if not bool(mask.unpack().all())]) for name in names
    }
    pruned = {name: mask for name, mask in found.items() if name in with_zeros}
    if not pruned:
        raise PrunusError("model", type(model).__name__, "none of its weights is zero; prune it before it is repaired")
    return pruned


def _weight_here(model: nn.Module, name: str) -> Tensor:
    """The weight of a matrix, or its rows in this process, where `fully_shard` has spread it."""
    place = place_of(model, name)
    parameter = model.get_parameter(place.parameter)
    if place.index is not None and is_sharded(parameter):
        raise PrunusError(
            "model",
            name,
            "it is one of several experts in a parameter that is sharded; train it with whole weights (DDP)",
        )
    return place.part(local(parameter.detach()))


@contextmanager
def holding(model: nn.Module, masks: Mapping[str, BitMask]) -> Iterator[None]:
    """While the context is open, zeros get no gradient, so they stay zero under SGD and Adam with any weight decay.

    Every gradient is masked as soon as it is whole, before it is clipped or reduced (ECoFLaP's sparse fine-tuning,
    gradients times w ≠ 0).
    """
    with ExitStack() as hooks:
        for name, mask in masks.items():
            place = place_of(model, name)
            parameter = model.get_parameter(place.parameter)
            if not parameter.requires_grad:
                continue
            hook = parameter.register_post_accumulate_grad_hook(_Masking(place, mask))  # type: ignore[no-untyped-call]
            hooks.callback(hook.remove)
        yield


class HeldZeros:
    """Zeros that stay; a context manager, or a handle that is released by hand."""

    def __init__(self, model: nn.Module):
        self._model, self._masks = model, zeros_of(model)
        self._hooks = ExitStack()
        self._hooks.enter_context(holding(model, self._masks))
        self._hooks.callback(register_optimizer_step_post_hook(self._after_step).remove)

    def __enter__(self) -> HeldZeros:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Puts every zero in its place a last time, and lets go."""
        self._hooks.close()
        self._put_zeros()

    @property
    def zeros(self) -> int:
        """How many weights are held."""
        return sum(int((~mask.unpack()).sum()) for mask in self._masks.values())

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._put_zeros()

    @torch.no_grad()
    def _put_zeros(self) -> None:
        for name, mask in self._masks.items():
            weight = _weight_here(self._model, name)
            weight.masked_fill_(~mask.unpack(weight.device), 0)


def hold_zeros(model: nn.Module) -> HeldZeros:
    """Keeps the zeros of a pruned model while you train it with a loop or trainer of your own.

    From the call on, zeros get no gradient, and after every step of a torch optimiser they are zero again, whatever it
    adds (momentum from before, weight decay, an orthogonalised update). All else trains.

    Args:
        model: pruned by prunus, or with zeros from elsewhere in the matrices that prunus knows. Under `fully_shard` (FSDP2), which is called
            before, each process holds the zeros that it has.

    Raises:
        PrunusError: nothing in the model is pruned.

    Examples:
        >>> with hold_zeros(model):
        ...     log = trainer.train()
    """
    return HeldZeros(model)


class _Masking:
    def __init__(self, place: Place, mask: BitMask):
        self._place, self._mask = place, mask

    def __call__(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._place.part(local(parameter.grad)).mul_(self._mask.unpack(parameter.grad.device))


def check_zeros(model: nn.Module, masks: dict[str, BitMask]) -> None:
    """Refuses a model whose zeros are not exactly those of the masks; of a sharded one, this process looks at its rows.

    Raises:
        PrunusError: a weight that was pruned is not zero, or one that stays is; the error names the matrix and the count.
    """
    for name, mask in masks.items():
        nonzero = _weight_here(model, name).ne(0)
        kept = mask.unpack(nonzero.device)
        for wrong, what in (
            (nonzero & ~kept, "were pruned and are not zero any more"),
            (kept & ~nonzero, "stay and are zero"),
        ):
            if bool(wrong.any()):
                raise PrunusError(name, f"{int(wrong.sum())} weights", f"they {what}; this model is not to be saved")


def keep_nonzero(weight: Tensor, kept: Tensor) -> None:
    """In place: what stays is not zero, even where a small type has rounded it to that."""
    limits = torch.finfo(weight.dtype)
    weight.masked_fill_(kept & (weight == 0), limits.smallest_normal * limits.eps)


@contextmanager
def in_fp32(model: nn.Module, masks: Mapping[str, BitMask]) -> Iterator[None]:
    """While the context is open, 16-bit parameters are fp32: small steps would be rounded away otherwise."""
    halves = {p: p.dtype for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)}
    for parameter in halves:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in halves.items():
            parameter.data = parameter.data.to(dtype)
        for name, mask in masks.items() if halves else ():
            weight = weight_of(model, name)
            keep_nonzero(weight, mask.unpack(weight.device))
