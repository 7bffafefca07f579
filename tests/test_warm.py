"""Processes that begin with everything imported do what processes do that are started for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from prunus import PrunusError
from prunus.evaluation import in_fresh_process, keeping_warm
from prunus.evaluation.warm import PLACE, SAFE

pytestmark = [pytest.mark.long, pytest.mark.skipif(not SAFE, reason="processes cannot fork here")]
MODULES = ["prunus", "tests.test_warm"]


@pytest.fixture(scope="module")
def warm() -> Iterator[None]:
    with keeping_warm(MODULES):
        yield


def said(kind: str = "") -> dict[str, object]:
    print("this is not the answer")
    if kind == "refuse":
        raise PrunusError("kind", kind, "take another")
    if kind == "die":
        os._exit(3)
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "fail":
        raise ValueError("of some kind")
    return {
        "process": os.getpid(), "folder": os.getcwd(), "told": os.environ.get("TOLD"), "rank": os.environ.get("RANK"), "path": sys.path[0],
        "threads": torch.get_num_threads(), "seed": torch.initial_seed(),
        "arguments": sys.argv[1:],
    }  # fmt: skip


def asked_twice() -> list[bool]:
    """Whether this process and one that it asks for are forks of the one that is kept warm."""
    return [bool(sys.argv[1:]), bool(in_fresh_process(said)["arguments"])]


def sleeping(file: str) -> None:
    Path(file).write_text(str(os.getpid()))
    time.sleep(100)


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end, "it took more than a minute"
        time.sleep(0.05)


@pytest.mark.usefixtures("warm")
def test_each_is_a_new_process_that_has_done_nothing() -> None:
    found = [in_fresh_process(said) for _ in range(3)]
    assert len({one["process"] for one in found} | {os.getpid()}) == 4
    assert all(one["arguments"] for one in found), "a fork has the arguments of the process that it is a fork of"
    assert len({one["seed"] for one in found}) == 1


@pytest.mark.usefixtures("warm")
def test_how_they_end_is_told_and_the_next_one_comes() -> None:
    for kind, why in {
        "refuse": "kind = 'refuse': take another", "die": "status 3", "fail": "status 1", "killed": "SIGKILL ended it; perhaps the memory was full"
    }.items():  # fmt: skip
        with pytest.raises(PrunusError, match=why):
            in_fresh_process(said, kind)
    assert in_fresh_process(said)["arguments"]


@pytest.mark.usefixtures("warm")
def test_it_has_folder_environment_and_paths_of_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = in_fresh_process(said, environment={"TOLD": "this", "OMP_NUM_THREADS": "2"})
    assert [found[name] for name in ("folder", "told", "rank", "path", "threads")] == [
        str(tmp_path), "this", None, str(tmp_path), 2,
    ]  # fmt: skip


@pytest.mark.usefixtures("warm")
def test_those_that_a_process_asks_for_are_warm_too() -> None:
    assert in_fresh_process(asked_twice) == [True, True]


@pytest.mark.usefixtures("warm")
def test_it_ends_with_the_one_that_asked(tmp_path: Path) -> None:
    file = tmp_path / "process"
    call = f"from tests.test_warm import *\nin_fresh_process(sleeping, {str(file)!r})"
    with subprocess.Popen([sys.executable, "-c", call]) as process:
        wait_for(lambda: file.exists() and file.read_text() != "")
        process.kill()
    wait_for(lambda: not psutil.pid_exists(int(file.read_text())))


def test_the_process_that_is_kept_ends_with_the_context_and_with_who_opened_it(tmp_path: Path) -> None:
    with keeping_warm(["json"]):
        place = Path(os.environ[PLACE])
        assert place.exists()
    assert PLACE not in os.environ
    assert not place.exists()
    call = "from tests.test_warm import *\nwith keeping_warm(['json']):\n print(PLACE, flush=True); time.sleep(100)"
    with subprocess.Popen([sys.executable, "-c", call], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (kept,) = psutil.Process(process.pid).children()
        process.kill()
    wait_for(lambda: not kept.is_running() or kept.status() == psutil.STATUS_ZOMBIE)


def test_where_none_are_kept_one_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLACE, "/nowhere")
    assert not in_fresh_process(said)["arguments"]


@pytest.mark.parametrize("modules", [["no_such_module"], []])
def test_a_process_that_cannot_be_kept_is_no_obstacle(modules: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.evaluation.warm.SAFE", bool(modules))
    with keeping_warm(modules):
        assert not in_fresh_process(said)["arguments"]
