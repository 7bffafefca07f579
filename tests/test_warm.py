"""Processes that begin with everything imported do what processes do that are started for it."""

from __future__ import annotations

import atexit
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from prunus import PrunusError
from prunus.evaluation import in_fresh_process, keeping_warm
from prunus.evaluation.warm import PLACE, can_fork

pytestmark = [pytest.mark.long, pytest.mark.skipif(not can_fork(), reason="processes cannot fork here")]
MODULES = ["prunus", "tests.test_warm"]
IMPORTED_BY = os.getpid()


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
    if kind == "silent":
        os._exit(0)
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "fail":
        raise ValueError("of some kind")
    return {
        "process": os.getpid(), "folder": os.getcwd(), "told": os.environ.get("TOLD"), "rank": os.environ.get("RANK"), "path": sys.path[0],
        "threads": torch.get_num_threads(), "seed": torch.initial_seed(), "drawn": [random.random(), float(np.random.rand())],
        "arguments": sys.argv[1:], "forked": os.getpid() != IMPORTED_BY,
    }  # fmt: skip


def asked_twice() -> list[bool]:
    """Whether this process and one that it asks for are forks of the one that is kept warm."""
    return [os.getpid() != IMPORTED_BY, in_fresh_process(said)["forked"]]


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
    assert all(one["forked"] and not one["arguments"] for one in found)
    assert len({one["seed"] for one in found}) == 1
    assert len({number for one in found for number in one["drawn"]}) == 6, "numbers that need no seed are its own"


@pytest.mark.usefixtures("warm")
def test_how_they_end_is_told_and_the_next_one_comes() -> None:
    for kind, why in {
        "refuse": "kind = 'refuse': take another", "die": "status 3", "fail": "status 1", "silent": "status 0 and no answer",
        "killed": "SIGKILL ended it; perhaps the memory was full",
    }.items():  # fmt: skip
        with pytest.raises(PrunusError, match=why):
            in_fresh_process(said, kind)
    assert in_fresh_process(said)["forked"]


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


def leaves_one_behind(file: str) -> None:
    subprocess.Popen(["sleep", "60"])
    atexit.register(Path(file).write_text, "ended")


@pytest.mark.usefixtures("warm")
def test_it_ends_as_any_process_and_nobody_waits_for_what_it_leaves_behind(tmp_path: Path) -> None:
    began = time.monotonic()
    in_fresh_process(leaves_one_behind, str(tmp_path / "file"))
    assert time.monotonic() - began < 30
    assert (tmp_path / "file").read_text() == "ended"


@pytest.mark.usefixtures("warm")
def test_it_ends_with_the_one_that_asked(tmp_path: Path) -> None:
    file = tmp_path / "process"
    call = f"from tests.test_warm import *\nin_fresh_process(sleeping, {str(file)!r})"
    with subprocess.Popen([sys.executable, "-c", call]) as process:
        wait_for(lambda: file.exists() and file.read_text() != "")
        process.kill()
    wait_for(lambda: not psutil.pid_exists(int(file.read_text())))


def test_the_process_that_is_kept_ends_with_the_context_and_with_who_opened_it(tmp_path: Path) -> None:
    before = os.environ.get(PLACE)
    with keeping_warm(["json"]):
        place = Path(os.environ[PLACE])
        assert str(place) != before
        assert place.exists()
    assert os.environ.get(PLACE) == before, "one within another leaves that one as it is"
    assert not place.parent.exists()
    call = "from tests.test_warm import *\nwith keeping_warm(['json']):\n print(os.environ[PLACE], flush=True); time.sleep(100)"
    with subprocess.Popen([sys.executable, "-c", call], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        place = Path(process.stdout.readline().decode().strip())
        (kept,) = psutil.Process(process.pid).children()
        process.kill()
    wait_for(lambda: not kept.is_running() or kept.status() == psutil.STATUS_ZOMBIE)
    assert not place.parent.exists(), "nothing stays"


@pytest.mark.parametrize("obstacle", ["no such module", "a GPU", "a long path", "it has died", "it is gone"])
def test_a_process_that_cannot_be_kept_is_no_obstacle(
    obstacle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PLACE, raising=False)
    monkeypatch.setattr("prunus.evaluation.fresh._started", lambda request, environment: ('{"returned": "started"}', 0))
    if obstacle == "a GPU":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    if obstacle == "a long path":
        (tmp_path / ("x" * 100)).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    others = psutil.Process().children()
    with keeping_warm(["no_such_module" if obstacle == "no such module" else "json"]):
        if obstacle == "it has died":
            (kept,) = (one for one in psutil.Process().children() if one not in others)
            kept.kill()
            kept.wait()
        if obstacle == "it is gone":
            monkeypatch.setenv(PLACE, "/nowhere")
        assert in_fresh_process(said) == "started"
