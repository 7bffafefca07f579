"""Which of how many processes this one is."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta

import torch
import torch.distributed as dist

from prunus.errors import PrunusError

PATIENCE = timedelta(hours=12)
"""How long processes wait for one that works by itself, such as the first one while it quantises. Of one that has died the launcher tells."""
_is_alone: ContextVar[bool] = ContextVar("is_alone", default=False)


def processes() -> int:
    """How many there are; one where torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _is_alone.get() else 1


def several() -> bool:
    """Whether there are others."""
    return processes() > 1


def process() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if several() else 0


def is_first() -> bool:
    """Whether this one writes and prints."""
    return process() == 0


def is_ours(number: int) -> bool:
    """Whether this process takes that item of a list that all processes have: they take turns."""
    return number % processes() == process()


@contextmanager
def alone() -> Iterator[None]:
    """While the context is open, this process does as if it were the only one: the others have no part in what it does."""
    before = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(before)


def refuse_sharding_launcher() -> None:
    """Refuses a launcher that lets the Trainer shard models: what has been set up around whole weights would be lost.

    Raises:
        PrunusError: accelerate was launched with FSDP or DeepSpeed.
    """
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        if os.environ.get(name, "").lower() in ("1", "true"):
            raise PrunusError(
                name, os.environ[name], "under the Trainer prunus needs whole weights: launch by torchrun, or accelerate launch --multi_gpu; of a "
                "model under fully_shard, train it in a loop of your own",
            )  # fmt: skip


def leave(status: int = 0) -> None:
    """Ends this process if it is one of several, without taking their group down, which can wait for ever for one that has left before."""
    if several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def join_group() -> None:
    """Joins the other processes where a launcher has started several and nobody has joined them yet: by nccl where there are GPUs, one
    each, otherwise by gloo.

    Raises:
        PrunusError: this torch was built without `torch.distributed`.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if int(count) < 2 or (dist.is_available() and dist.is_initialized()):
        return
    if not dist.is_available():
        raise PrunusError(
            "WORLD_SIZE", count, "this torch was built without torch.distributed; install another, or start one process without a launcher"
        )  # fmt: skip
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
