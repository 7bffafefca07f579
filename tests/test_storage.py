"""Places for what is to be made: refused before the work, left alone when something has come meanwhile, and a full disk that is said."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import SafetensorError

from prunus import PrunusError
from prunus.storage import is_full, vacant_folder, vacant_place


@pytest.mark.parametrize("inside", ["file", "file/out", "file/more/out", "full", "link-to-full"])
def test_a_place_where_nothing_can_be_made_is_refused(inside: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "link-to-full").symlink_to(tmp_path / "full")
    with pytest.raises(PrunusError, match=r"is there already|nothing can be made in") as refused:
        vacant_place(tmp_path / inside, "out")
    assert refused.value.field == "out"


@pytest.mark.parametrize("name", ["new", "more/new", "empty", "ein Ordner für Ä", "link", "link-to-nothing"])
def test_what_is_made_lies_at_its_place_and_nowhere_else(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "link-to-nothing").symlink_to(tmp_path / "nothing")
    with vacant_folder(vacant_place(tmp_path / name)) as partial:
        (partial / "mine").write_text("whole")
    assert (tmp_path / name / "mine").read_text() == "whole"
    assert (tmp_path / name).is_symlink() == name.startswith("link")
    assert not list(tmp_path.rglob(".*"))


def test_what_has_come_meanwhile_is_left_alone(tmp_path: Path) -> None:
    def both() -> None:
        with vacant_folder(tmp_path / "out") as mine, vacant_folder(tmp_path / "out") as other:
            (mine / "mine").touch()
            (other / "other").touch()

    with pytest.raises(PrunusError, match="is there already"):
        both()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "other"]


@pytest.mark.parametrize(
    ("error", "free"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1 << 40),
        (SafetensorError("I/O error: No space left on device (os error 28)"), 1 << 40),
        (RuntimeError("enforce fail: unexpected pos 256 vs 152"), 4096),  # torch's words
    ],
)
def test_a_full_disk_is_said_whatever_a_library_calls_it(
    error: Exception, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(error: Exception) -> None:
        with vacant_folder(tmp_path / "out") as partial:
            (partial / "some").touch()
            raise error

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    with pytest.raises(PrunusError, match="no room for it on the disk") as refused:
        failing(error)
    assert refused.value.__cause__ is error
    assert not list(tmp_path.iterdir())


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    other: Any = OSError(errno.EACCES, "Permission denied")
    assert not is_full(other, tmp_path, 0)
    assert is_full(other, tmp_path, 1 << 62)
