"""What processes tell each other. All of them have to come to each of these, in the same order.

A process that fails does not come: `agreeing` lets it tell the others why, and they hear of it at whatever they come to next of `agreeing`,
`everyones`, `of_first` and `barrier`. What adds up or hands round tensors asks nobody, and stands where nothing can have gone wrong since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from prunus.errors import PrunusError
from prunus.parallel.processes import alone, is_first, process, processes, several

P = ParamSpec("P")
T = TypeVar("T")
AnyError = TypeVar("AnyError", bound=Exception)
LARGE = 1 << 20
"""Elements from which on a tensor is sent by itself, and not copied together with others."""
Words = tuple[str, str, str]
"""Of an error: field, value and remedy."""


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
    """What every process gives here, in their order: small things, such as names and numbers.

    Raises:
        PrunusError: another process has failed.
    """
    return _exchanged(value) if several() else [value]


def of_first(value: T) -> T:
    """What the first process gives here.

    Raises:
        PrunusError: another process has failed.
    """
    return _exchanged(value if is_first() else None)[0] if several() else value  # type: ignore[return-value]


def barrier() -> None:
    """Waits until all have come here.

    Raises:
        PrunusError: another process has failed.
    """
    if several():
        _exchanged(None)


def after_first(function: Callable[[], T]) -> T:
    """Calls a function in the first process, and then in the others, which find on disk what it has left there. Each is alone with it."""
    found: list[T] = []
    for turn in (True, False):
        with agreeing():
            if is_first() == turn:
                with alone():
                    found.append(function())
    return found[0]


def told_by_first(function: Callable[[], T]) -> T:
    """What a function returns that the first process calls alone, while the others wait."""
    found: list[T] = []
    with agreeing():
        if is_first():
            with alone():
                found.append(function())
    return of_first(found)[0]


def by_first(function: Callable[P, T]) -> Callable[P, T]:
    """The function, as `told_by_first` calls it."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return told_by_first(partial(function, *args, **kwargs))

    return call


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
    """What goes wrong within the context in one process goes wrong in all of them, at the latest when they leave it, so that none waits for
    ever. Contexts may stand within each other, and what is exchanged within them. An interruption by the user is nobody else's.

    Raises:
        PrunusError: another process has failed; what it refused, by its own words.
    """
    if not several():
        yield
        return
    try:
        yield
    except Exception as error:  # whatever it is, the others must not wait for this process
        if not _is_known(error):
            with suppress(PrunusError):  # the others have ended
                _gathered(_in_words(_known(error)), None)
        raise
    _exchanged(None)


def _exchanged(value: T) -> list[T]:
    found = _gathered(None, value)
    failed = next((words for words, _ in found if words is not None), None)
    if failed is not None:
        raise _known(PrunusError(*failed))
    return [given for _, given in found]


def _gathered(words: Words | None, value: T) -> list[tuple[Words | None, T]]:
    """What has gone wrong in each process, and what it gives."""
    found: list[Any] = [None] * processes()
    try:
        dist.all_gather_object(found, (words, value))
    except RuntimeError as error:
        lost = "another one has ended without a word, and this one cannot go on; see what that one said last, and start all of them again"
        raise _known(PrunusError("processes", processes(), lost)) from error
    return found


def _known(error: AnyError) -> AnyError:
    """An error of which no other process need be told any more."""
    vars(error)["is_known"] = True
    return error


def _is_known(error: BaseException) -> bool:
    """Whether all processes have been told of an error, or of the one that it was made of."""
    earlier = [one for one in (error.__cause__, error.__context__) if one is not None]
    return "is_known" in vars(error) or any(map(_is_known, earlier))


def _in_words(error: Exception) -> Words:
    if isinstance(error, PrunusError):
        return error.field, str(error.value), error.remedy
    return f"process {process()}", type(error).__name__, f"it failed: {error}"


def _meeting_place(device: torch.device) -> torch.device:
    """Where the group can take a tensor from: nccl knows none of main memory."""
    if device.type == "cpu" and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return device
