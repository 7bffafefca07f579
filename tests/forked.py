"""Two processes for the time of one import: a process that has imported everything and computed nothing divides."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch.distributed as dist


def in_two(function: Callable[[Path], None], before: Callable[[Path], None]) -> None:
    """Calls a function in two processes that are one gloo group; ends this one, with a status other than 0 if one of them fails.

    Args:
        function: given a folder of both.
        before: what a process alone has to do in that folder first.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        failed = _wait([child(partial(before, folder))])
        failed = failed or _wait([child(partial(_joined, rank, folder, function)) for rank in range(2)])
    sys.exit(failed)


def _joined(rank: int, folder: Path, function: Callable[[Path], None]) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT="0"
    )  # fmt: skip
    dist.init_process_group(
        "gloo", timeout=timedelta(minutes=2), init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    function(folder)
    dist.barrier()


def child(function: Callable[[], object], seconds: int = 0) -> int:
    """The number of a new process that calls a function, and ends; killed after some seconds, if any are given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, where this process has several threads
        child = os.fork()
    if child:
        return child
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        function()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)  # without teardown: destroying the group waits now and then for ever, leaving it whole may abort


def _wait(children: list[int]) -> bool:
    """Whether one of these processes has failed; the others are ended then."""
    failed = False
    while children:
        ended, status = os.wait()
        children.remove(ended)
        if status and not failed:
            failed = True
            for other in children:
                os.kill(other, signal.SIGTERM)
    return failed


def ended(function: Callable[[], object]) -> int:
    """Calls a function in a process of its own: its exit status, or the number of the signal that ended it."""
    status = os.waitpid(child(function), 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
