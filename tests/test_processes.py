"""Several processes against one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from prunus import PrunusError, Training
from prunus.parallel import after_first, is_first, is_ours, join_group, processes, refuse_sharding_launcher, shared_out
from prunus.training.finetune import _begun
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


def test_a_torch_without_processes_is_refused_to_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_available", lambda: False)
    join_group()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PrunusError, match="built without"):
        join_group()


def test_a_training_goes_on_with_as_many_processes_as_it_began_with(tmp_path: Path) -> None:
    settings = nn.Linear(2, 2), Training(steps=1, learning_rate=1e-3), 0, dict[str, str]()
    assert _begun(tmp_path, *settings, 2) is None
    assert _begun(tmp_path, *settings, 1) is None  # nothing is there yet that would be gone on with
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "complete").touch()
    assert _begun(tmp_path, *settings, 1) == tmp_path / "checkpoint-1"
    with pytest.raises(PrunusError, match="begun by a training in 1 processes, and here are 2"):
        _begun(tmp_path, *settings, 2)


@pytest.mark.long
def test_two_processes_do_what_one_does() -> None:
    command = [sys.executable, "-m", "tests.in_processes"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    for check in CHECKS:
        assert done.stdout.count(f"{check.__name__}: passed") == 2
