"""What processes tell each other. All of them have to come to each of these, in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from prunus.errors import PrunusError
from prunus.parallel.processes import is_first, process, processes, several

T = TypeVar("T")
LARGE = 1 << 20
"""Elements from which on a tensor is sent by itself, and not copied together with others."""


@torch.no_grad()
def add_up(tensors: Sequence[Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Puts into every tensor the sum over processes, which have tensors of the same shapes, types and kinds of device. All get the same
    bits.

    Args:
        group: the processes; by default all.
    """
    if not several():
        return
    small: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in filter(torch.numel, tensors):
        if tensor.numel() >= LARGE:
            _sum(tensor, group)
        else:
            small.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for together in small.values():
        packed = torch.cat([tensor.reshape(-1) for tensor in together])
        _sum(packed, group)
        for tensor, part in zip(together, torch.split(packed, [tensor.numel() for tensor in together]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def summed(numbers: Mapping[str, float]) -> dict[str, float]:
    """Every number, by its name, added up over processes, which have the same names in the same order."""
    if not several():
        return dict(numbers)
    total = torch.tensor(list(numbers.values()), dtype=torch.float64)
    add_up([total])
    return dict(zip(numbers, total.tolist(), strict=True))


def _sum(tensor: Tensor, group: dist.ProcessGroup | None) -> None:
    sent = tensor.to(_meeting_place(tensor.device)).contiguous()
    dist.all_reduce(sent, group=group)
    if sent.data_ptr() != tensor.data_ptr():
        tensor.copy_(sent)


@torch.no_grad()
def from_process(source: int, tensor: Tensor) -> Tensor:
    """The tensor of one process, bit for bit; others give one of the same shape and type, which may be overwritten."""
    if not several() or not tensor.numel():
        return tensor
    sent = tensor.to(_meeting_place(tensor.device)).contiguous()
    dist.broadcast(sent.view(-1).view(torch.uint8), source)
    return sent.to(tensor.device)


def everyones(value: T) -> list[T]:
    """What every process gives here, in their order: small things, such as names and numbers."""
    if not several():
        return [value]
    found: list[Any] = [None] * processes()
    dist.all_gather_object(found, value)
    return found


def of_first(value: T) -> T:
    """What the first process gives here."""
    if not several():
        return value
    held = [value]
    dist.broadcast_object_list(held, 0)
    return held[0]


def after_first(function: Callable[[], T]) -> T:
    """Calls a function in the first process, and then in the others, which find on disk what it has left there."""
    with agreeing():
        found = [function()] if is_first() else []
    with agreeing():
        return found[0] if found else function()


@contextmanager
def in_first(context: AbstractContextManager[object]) -> Iterator[None]:
    """Enters a context in the first process; the others wait until it has."""
    with ExitStack() as held:
        with agreeing():
            if is_first():
                held.enter_context(context)
        yield


@contextmanager
def agreeing() -> Iterator[None]:
    """What goes wrong within the context in one process goes wrong in all of them when they leave it, so that none waits for ever.

    Raises:
        PrunusError: another process has failed; what it refused, by its own words.
    """
    if not several():
        yield
        return
    mine: Exception | None = None
    try:
        yield
    except Exception as error:  # whatever it is, the others must not wait for this process
        mine = error
    theirs = everyones(None if mine is None else _in_words(mine))
    if mine is not None:
        raise mine
    failed = next((words for words in theirs if words is not None), None)
    if failed is not None:
        raise PrunusError(*failed)


def _in_words(error: Exception) -> tuple[str, str, str]:
    if isinstance(error, PrunusError):
        return error.field, str(error.value), error.remedy
    return f"process {process()}", type(error).__name__, f"it failed: {error}"


def _meeting_place(device: torch.device) -> torch.device:
    """Where the group can take a tensor from: nccl knows none of main memory."""
    if device.type == "cpu" and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return device
