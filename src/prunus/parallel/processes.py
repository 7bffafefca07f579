"""Which of how many processes this one is."""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist


def processes() -> int:
    """How many there are; one where torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


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


def barrier() -> None:
    """Waits until all have come here."""
    if several():
        dist.barrier()


def leave(status: int = 0) -> None:
    """Ends this process if it is one of several, without taking their group down, which can wait for ever for one that has left before."""
    if several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def join_group() -> None:
    """Joins the other processes where a launcher has started several and nobody has joined them yet: by nccl where there are GPUs, one
    each, otherwise by gloo."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or (dist.is_available() and dist.is_initialized()):
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
