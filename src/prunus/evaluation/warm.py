"""New processes that need not import anything first: forks of one that has done nothing else.

Importing torch and transformers takes longer than many a small model takes to be evaluated. While `keeping_warm` is open, `in_fresh_process`
gets forks of a process that has imported what they need, here and in every process that is started meanwhile. They begin as new ones do,
with nothing loaded and random numbers of their own; peak memory counts what had been imported, too.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

PLACE = "PRUNUS_WARM"
"""The variable of the environment that says where processes are had: the path of a socket."""
KILLED = -9
"""How a process ended that could say nothing more."""
LONGEST = 80
"""Bytes that the path of the folder for temporary files may have, for that of a socket in it to be one."""


def can_fork() -> bool:
    """Whether a process may fork once it has imported everything: frameworks of macOS may not, Windows cannot, and nothing that has looked for
    a GPU."""
    return sys.platform == "linux" and not torch.cuda.is_available()


@contextmanager
def keeping_warm(modules: Sequence[str]) -> Iterator[None]:
    """While the context is open, new processes begin with these modules imported; nothing changes where that is impossible."""
    if not can_fork() or len(os.fsencode(tempfile.gettempdir())) > LONGEST:
        yield
        return
    folder = Path(tempfile.mkdtemp(prefix="prunus-"))
    place = str(folder / "socket")
    command = [sys.executable, "-P", "-m", "prunus.evaluation", place, *modules]
    before = os.environ.get(PLACE)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=with_paths(os.environ)
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if process.stdout.readline():  # it has imported everything
                os.environ[PLACE] = place
            yield
        finally:
            os.environ.pop(PLACE, None)
            if before is not None:
                os.environ[PLACE] = before
            process.stdin.close()  # which ends it
    shutil.rmtree(folder, ignore_errors=True)


def with_paths(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which Python finds modules where this process does."""
    return {**environment, "PYTHONPATH": os.pathsep.join(place or os.getcwd() for place in sys.path)}


def ask(request: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[str, int] | None:
    """What a process that was warm says, and how it ended (as `subprocess` has it); None where there are none to be had."""
    place = environment.get(PLACE)
    if place is None:
        return None
    told = {**request, "environment": with_paths(environment), "path": sys.path, "folder": os.getcwd()}
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(None)
            line.connect(place)
            line.sendall(json.dumps(told).encode() + b"\n")
            with line.makefile(encoding="utf-8") as lines:
                said = lines.read()  # meanwhile the line stays open: when this process ends, so does the other
    except OSError:  # it has gone
        return None
    answer, _, status = said.rpartition("\n")
    return answer, int(status) if status.lstrip("-").isdecimal() else KILLED


def serve(place: str, modules: Sequence[str]) -> bool:
    """Forks a process for everyone who connects to `place`, until standard input closes.

    Args:
        modules: imported first.

    Returns:
        True in every process that was forked for someone: its standard input says what is to be done, and its standard output is waited for.
        False in this one, once it is over.
    """
    ready, kept = os.dup(1), os.getpid()
    os.dup2(2, 1)
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it says when it is over
    try:
        for module in modules:
            importlib.import_module(module)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
        with suppress(OSError), socket.socket(socket.AF_UNIX) as door:  # who started it may have gone
            door.settimeout(None)
            door.bind(place)
            door.listen()
            os.write(ready, b"ready\n")
            os.close(ready)
            while sys.stdin not in select.select([door, sys.stdin], [], [])[0]:
                line, _ = door.accept()
                with line:
                    if _is_forked(line):
                        signal.signal(signal.SIGINT, interrupted)
                        return True
    finally:
        if os.getpid() == kept:
            shutil.rmtree(Path(place).parent, ignore_errors=True)
    return False


def _is_forked(line: socket.socket) -> bool:
    """Forks a process for whoever is at the other end, and one between that says how it ended; whether this is the former."""
    try:
        between = os.fork() == 0
    except OSError:  # no memory for another: the line closes
        return False
    if not between:
        return False
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with suppress(OSError):
        process = os.fork()
        if process == 0:
            os.dup2(line.fileno(), 0)
            os.dup2(line.fileno(), 1)
            return True
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        line.sendall(f"\n{status}".encode())
        line.shutdown(socket.SHUT_RDWR)  # others that it has started may hold the line
    os._exit(0)


def take_place(request: Mapping[str, Any]) -> None:
    """Makes a fork what a process is that is started for whoever asks: its environment, folder and paths, as many threads, and random numbers
    of its own.
    """
    if "environment" not in request:
        return
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:] = request["path"]
    del sys.argv[1:]
    os.chdir(request["folder"])
    random.seed()
    np.random.seed()
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads):
        torch.set_num_threads(int(threads))
