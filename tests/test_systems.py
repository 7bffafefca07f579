"""What one operating system has and another lacks: locks and peak memory, each with its other way."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import prunus
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


def test_loggers_of_a_training_are_there_or_refused() -> None:
    settings = {"steps": 1, "learning_rate": 1e-3}
    quiet, loud = prunus.Training(**settings), prunus.Training(**settings)
    object.__setattr__(loud, "report_to", ("tensorboard",))
    assert quiet.identity() == loud.identity()  # what is learned is the same
    missing = next((name for name in ("trackio", "mlflow", "wandb") if importlib.util.find_spec(name) is None), None)
    if missing is not None:
        with pytest.raises(PrunusError, match=f"pip install {missing}"):
            prunus.Training(**settings, report_to=(missing,))
