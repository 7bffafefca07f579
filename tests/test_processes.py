"""Several processes against one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prunus import PrunusError
from prunus.parallel import after_first, is_first, is_ours, processes, refuse_sharding_launcher, shared_out
from tests.in_processes import CHECKS


def test_alone_everything_is_ours() -> None:
    assert (processes(), is_first(), is_ours(7)) == (1, True, True)
    assert shared_out({"a": 1.0, "b": 2.0}) == {"a": 0, "b": 0}


def test_alone_nothing_is_done_twice() -> None:
    called: list[None] = []
    assert after_first(lambda: called.append(None)) is None
    assert len(called) == 1


def test_the_dearest_goes_to_whoever_has_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.parallel.sharing.processes", lambda: 2)
    assert shared_out({"a": 1.0, "b": 5.0, "c": 2.0, "d": 2.0}) == {"b": 0, "c": 1, "d": 1, "a": 1}


def test_a_launcher_that_shards_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_sharding_launcher()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(PrunusError, match="torchrun"):
        refuse_sharding_launcher()


@pytest.mark.long
def test_two_processes_do_what_one_does() -> None:
    command = [sys.executable, "-m", "tests.in_processes"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    for check in CHECKS:
        assert done.stdout.count(f"{check.__name__}: passed") == 2
