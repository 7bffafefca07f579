"""What one operating system has and another lacks: locks, memory, encodings, each with its other way."""

from __future__ import annotations

import ast
import importlib.util
import io
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import prunus
from prunus import cli
from prunus.checkpoint import memory
from prunus.errors import PrunusError

PACKAGE = Path(prunus.__file__).parent


def copy_of(name: str, monkeypatch: pytest.MonkeyPatch, **modules: Any) -> ModuleType:
    """A module as it is where other modules of the system are there; None is one that is not."""
    for module, value in modules.items():
        monkeypatch.setitem(sys.modules, module, value)
    spec = importlib.util.spec_from_file_location(f"copy_of_{name}", PACKAGE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, made)
    spec.loader.exec_module(made)
    return made


class Windows(SimpleNamespace):
    """Its locks: a byte of a file, which nobody else can take; after some asking the other gives it back."""

    LK_NBLCK = 2
    held, asked = False, 0

    def locking(self, descriptor: int, mode: int, count: int) -> None:
        assert (mode, count) == (self.LK_NBLCK, 1)
        assert os.lseek(descriptor, 0, os.SEEK_CUR) > 1000  # behind what is read
        self.asked += 1
        if self.held and self.asked < 3:
            raise PermissionError(13, "Permission denied")


def test_a_folder_is_locked_where_there_is_no_fcntl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = Windows()
    storage = copy_of("storage", monkeypatch, fcntl=None, msvcrt=system)
    with storage.locked(tmp_path):
        assert (tmp_path / storage.LOCK).read_text() == str(os.getpid())
    system.held, system.asked = True, 0
    with pytest.raises(PrunusError, match=f"process {os.getpid()} is at work in it"), storage.locked(tmp_path):
        pass
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    with storage.locked(tmp_path, wait=True):
        assert system.asked == 3


def test_peak_memory_is_known_where_there_is_neither_proc_nor_getrusage(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = copy_of("cost", monkeypatch, resource=None)
    monkeypatch.setattr(cost.Path, "exists", lambda path: False)
    told = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=12345))
    monkeypatch.setattr(cost.psutil, "Process", lambda: told)
    assert cost.peak_memory() == 12345


@pytest.mark.parametrize(("platform", "bytes_"), [("darwin", 7), ("freebsd14", 7 * 1024)])
def test_peak_memory_without_proc(platform: str, bytes_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=7))
    cost = copy_of("cost", monkeypatch, resource=usage)
    monkeypatch.setattr(cost.Path, "exists", lambda path: False)
    monkeypatch.setattr(cost.sys, "platform", platform)
    assert cost.peak_memory() == bytes_


def test_a_machine_knows_its_memory_where_there_is_no_sysconf(monkeypatch: pytest.MonkeyPatch) -> None:
    known = memory()
    monkeypatch.delattr(os, "sysconf")
    assert memory() == known > 1 << 28


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
def test_what_an_encoding_lacks_is_written_otherwise(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    monkeypatch.setattr(cli, "app", lambda: print("24kB → 12kB in fol\udce4er"))
    cli.main()
    sys.stdout.flush()
    arrow = "\\u2192" if encoding == "cp1252" else "→"
    assert written.getvalue().decode(encoding).strip() == f"24kB {arrow} 12kB in fol\\udce4er"


ELSEWHERE = {
    "fork", "forkpty", "getuid", "geteuid", "getgid", "killpg", "sysconf", "statvfs", "uname", "mkfifo", "nice", "getloadavg",
    "sched_getaffinity", "posix_fadvise", "register_at_fork", "setsid", "SIGKILL", "SIGALRM", "SIGUSR1", "alarm", "setitimer", "pwd", "grp",
}  # fmt: skip
"""Of `os`, `signal` and the library, what Windows lacks."""


def called(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]


ASKED_FOR = {("warm.py", "fork")}
"""Files that use what not every system has after they have asked which one it is."""


def is_text_of_no_encoding(call: ast.Call) -> bool:
    """Whether a call reads or writes text as the system would have it."""
    given, mode = {keyword.arg for keyword in call.keywords}, ast.unparse(call.args[-1]) if call.args else ""
    files = isinstance(call.func, ast.Attribute) and called(call) in ("read_text", "write_text")
    opened = ast.unparse(call.func) in ("open", "os.fdopen") and "mode" not in mode and "b'" not in mode
    pipes = called(call) in ("Popen", "run") and "text" in given
    return (files or opened or pipes) and "encoding" not in given


@pytest.mark.parametrize("room", sorted({file.relative_to(PACKAGE).parts[0] for file in PACKAGE.rglob("*.py")}))
def test_nothing_asks_for_one_system_or_for_its_encoding(room: str) -> None:
    wrong = []
    for file in [PACKAGE / room] if room.endswith(".py") else (PACKAGE / room).rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        for node in nodes:
            named = [node.attr] if isinstance(node, ast.Attribute) else []
            named += [name.name for name in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            wrong += [(file.name, name) for name in named if name in ELSEWHERE and (file.name, name) not in ASKED_FOR]
        calls = [node for node in nodes if isinstance(node, ast.Call)]
        ascii_text = {
            id(part)
            for call in calls
            if called(call) in ("loads", "write_text") and "json" in ast.unparse(call)
            for part in ast.walk(call)
        }
        wrong += [
            (file.name, ast.unparse(call))
            for call in calls
            if is_text_of_no_encoding(call) and id(call) not in ascii_text
        ]
    assert wrong == []


def test_loggers_of_a_training_are_there_or_refused() -> None:
    settings = {"steps": 1, "learning_rate": 1e-3}
    quiet, loud = prunus.Training(**settings), prunus.Training(**settings)
    object.__setattr__(loud, "report_to", ("tensorboard",))
    assert quiet.identity() == loud.identity()  # what is learned is the same
    missing = next((name for name in ("trackio", "mlflow", "wandb") if importlib.util.find_spec(name) is None), None)
    if missing is not None:
        with pytest.raises(PrunusError, match=f"pip install {missing}"):
            prunus.Training(**settings, report_to=(missing,))
