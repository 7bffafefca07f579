"""New processes that need not import anything first: forks of one that has done nothing else.

Importing torch and transformers takes longer than many a small model takes to be evaluated. While `keeping_warm` is open, `in_fresh_process`
gets forks of a process that has imported what they need, here and in every process that is started meanwhile. They begin as new ones do:
nothing is loaded, no random number drawn, and peak memory counts from there.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

PLACE = "PRUNUS_WARM"
"""The variable of the environment that says where processes are had: the path of a socket."""
SAFE = sys.platform == "linux"
"""Whether a process may fork once it has imported everything; the frameworks of macOS may not, and Windows cannot."""


@contextmanager
def keeping_warm(modules: Sequence[str]) -> Iterator[None]:
    """While the context is open, new processes begin with these modules imported; nothing changes where that is impossible."""
    if not SAFE:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="prunus-") as folder:
        place = str(Path(folder) / "socket")
        command = [sys.executable, "-P", "-m", "prunus.evaluation", place, *modules]
        found = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **found}
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                if process.stdout.readline():  # it has imported everything
                    os.environ[PLACE] = place
                yield
            finally:
                os.environ.pop(PLACE, None)
                process.stdin.close()  # which ends it


def ask(request: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[str, int] | None:
    """What a process that was warm says, and how it ended (as `subprocess` has it); None where there are none to be had."""
    place = environment.get(PLACE)
    if place is None:
        return None
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(place)
        except OSError:
            return None
        told = {**request, "environment": dict(environment), "path": sys.path, "folder": os.getcwd()}
        line.sendall(json.dumps(told).encode() + b"\n")
        with line.makefile(encoding="utf-8") as lines:
            said = lines.read()  # meanwhile the line stays open: when this process ends, so does the other
    answer, _, status = said.rpartition("\n")
    return answer, int(status) if status else -signal.SIGKILL


def serve(place: str, modules: Sequence[str], answer: Callable[[], None]) -> None:
    """Forks a process for everyone who connects to `place`, until standard input closes.

    Args:
        modules: imported first.
        answer: what such a process does: it is told on standard input what, and answers on standard output.
    """
    ready = os.dup(1)
    os.dup2(2, 1)
    for module in modules:
        importlib.import_module(module)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller says when it is over
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(place)
        door.listen()
        os.write(ready, b"ready\n")
        os.close(ready)
        while sys.stdin not in select.select([door, sys.stdin], [], [])[0]:
            line, _ = door.accept()
            with line:
                if os.fork() == 0:
                    door.close()
                    _see_through(line, answer)


def _see_through(line: socket.socket, answer: Callable[[], None]) -> NoReturn:
    """Forks once more, and says how that process ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    process = os.fork()
    if process == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(line.fileno(), 0)
        os.dup2(line.fileno(), 1)
        line.close()
        _become(answer)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    try:
        line.sendall(f"\n{status}".encode())
    finally:
        os._exit(0)


def _become(answer: Callable[[], None]) -> NoReturn:
    """Ends as a process does that was started for it."""
    status = 1
    try:
        answer()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def take_place(request: Mapping[str, Any]) -> None:
    """Makes a process what the one that asked for it is: its environment, folder and paths, and as many threads as it would have."""
    if "environment" not in request:
        return
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:] = request["path"]
    os.chdir(request["folder"])
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal():
        import torch

        torch.set_num_threads(int(threads))
