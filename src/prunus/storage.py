"""Files that are either whole or absent, whatever kills the process."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

from prunus.errors import PrunusError

fcntl: Any
msvcrt: Any
try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None

NAME_LIMIT = 200
"""Bytes of a file's name. File systems take 255, and what is being written has a few more until it is whole."""
PATH_LIMIT = 3500
"""Bytes of a path to a run's folder; systems take 4096 for the files inside."""
LITTLE = 1 << 20
"""Bytes: where writing has failed with less than this free, the disk counts as full."""
_in_passing: ContextVar[bool] = ContextVar("_in_passing", default=False)


def refuse_newer(field: str, written: str, current: str) -> None:
    """Refuses a file of a format that a later version of prunus wrote.

    Args:
        written: its format, such as prunus.plan/1, or a text that names it.
        current: the latest version that is read.

    Raises:
        PrunusError: see above.
    """
    kind, _, newest = current.partition("/")
    found = re.search(rf"{re.escape(kind)}/([1-9]\d{{0,8}})\b", written)
    if found is not None and int(found[1]) > int(newest):
        raise PrunusError(
            field, found[0], f"a newer prunus wrote it, and this one reads up to {current}; update prunus"
        )


def cache_folder() -> Path:
    """Where models are kept that were made or unpacked here: $PRUNUS_CACHE, or `prunus` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PRUNUS_CACHE") or Path(base) / "prunus")


def writable_path(path: str | Path, field: str = "output") -> Path:
    """A path to write to, with `~` expanded.

    Raises:
        PrunusError: it is empty, no name that a file system takes, or a folder that holds everything else.
    """
    text = str(path)
    try:
        place = Path(path).expanduser()
        encoded = os.fsencode(place)
    except (RuntimeError, ValueError):
        raise PrunusError(field, text, "it is no name of a folder; choose another") from None
    if not text.strip() or text == "." or b"\0" in encoded or "\n" in text:
        raise PrunusError(field, text, "name a folder of its own")
    if len(encoded) > PATH_LIMIT or any(len(os.fsencode(part)) > NAME_LIMIT for part in place.parts):
        raise PrunusError(field, text, f"it is too long: a name has at most {NAME_LIMIT} bytes, a path {PATH_LIMIT}")
    here = Path(os.path.abspath(place))
    if here in (Path.home(), Path.cwd(), *Path.cwd().parents):
        raise PrunusError(field, text, f"{here} holds other things; name a folder of its own")
    return place


def vacant_place(path: str | Path, field: str = "folder") -> Path:
    """As `writable_path`, of something that is to be made: nothing is there, or an empty folder, and something can be made around it.

    Raises:
        PrunusError: as `writable_path`, or it is not so.
    """
    place = writable_path(path, field)
    refuse_taken(place, field)
    _refuse_closed(Path(os.path.realpath(place)).parent, path, field)
    return place


def results_folder(path: str | Path, field: str = "folder") -> Path:
    """As `writable_path`, of a folder that files are put into, whatever else it holds: said before what is to be written is known.

    Raises:
        PrunusError: as `writable_path`; it is a file, or nothing can be made in it.
    """
    place = writable_path(path, field)
    if place.exists() and not place.is_dir():
        raise PrunusError(field, str(path), "it is a file; name a folder")
    _refuse_closed(Path(os.path.realpath(place)), path, field)
    return place


def results_file(path: str | Path, field: str = "path") -> Path:
    """As `results_folder`, of a file, which is replaced if it is there.

    Raises:
        PrunusError: as `writable_path`; it is a folder, or no file can be made there.
    """
    place = writable_path(path, field)
    if place.is_dir():
        raise PrunusError(field, str(path), "it is a folder; name a file")
    _refuse_closed(Path(os.path.realpath(place)).parent, path, field)
    return place


def _refuse_closed(folder: Path, path: str | Path, field: str) -> None:
    """Refuses a folder, which need not be there yet, that nothing can be made in."""
    around = next(place for place in (folder, *folder.parents) if place.exists())
    if not around.is_dir() or not os.access(around, os.W_OK):
        raise PrunusError(field, str(path), f"nothing can be made in {around}; take another place")


def refuse_taken(place: Path, field: str) -> None:
    """Refuses what is there, unless it is an empty folder.

    Raises:
        PrunusError: see above.
    """
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise PrunusError(field, str(place), "it is there already; take a new name")


def is_full(error: BaseException, folder: Path, little: int = LITTLE) -> bool:
    """Whether an error came of a lack of room on a folder's disk: some libraries say so in words of their own.

    Args:
        little: bytes; what is free counts as nothing below this.
    """
    full = errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno in full:
            return True
        if any(f"(os error {number})" in str(chain) for number in full):  # safetensors
            return True
        chain = chain.__cause__ or chain.__context__
    return folder.is_dir() and shutil.disk_usage(folder).free < little


@contextmanager
def room_on_disk(folder: Path, path: Path, field: str = "folder") -> Iterator[None]:
    """While the context is open, an error that came of a full disk becomes one that says so.

    Args:
        folder: that is written to.
        path: what is being made, for the error.
    """
    try:
        yield
    except Exception as error:
        own = isinstance(error, PrunusError) and error.__cause__ is None
        if own or not is_full(error, folder):
            raise
        raise PrunusError(
            field, str(path), "there is no room for it on the disk; make some, or take another"
        ) from error


def claim_folder(path: Path, ours: str, field: str = "output") -> None:
    """Makes a folder, or takes one that is empty or holds the file `ours`.

    Raises:
        PrunusError: it is a file, cannot be made, or holds what is not ours.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        inside = [name for name in os.listdir(path) if name != LOCK]
        if inside and ours not in inside:
            raise PrunusError(
                field, str(path), f"it holds other things, such as {sorted(inside)[0]}; take a new or an empty folder"
            )
        with tempfile.TemporaryFile(dir=path):
            pass
    except FileExistsError:
        raise PrunusError(field, str(path), "it is a file; name a folder") from None
    except OSError as error:
        raise PrunusError(
            field, str(path), f"it cannot be written to ({error.strerror}); choose another folder"
        ) from None


LOCK = ".prunus-lock"
LOCKED_BYTE = 1 << 20


@contextmanager
def locked(folder: Path, field: str = "output", wait: bool = False) -> Iterator[None]:
    """Keeps a folder for this process until the block, or the process, ends in whatever way.

    Raises:
        PrunusError: another process has it, unless this one may `wait`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a+", encoding="utf-8") as file:
        try:
            _lock(file, wait)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read(20).strip()
            raise PrunusError(
                field, str(folder), f"process {holder} is at work in it; wait for it, or take another folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _lock(file: IO[str], wait: bool) -> None:
    """Takes the lock of a file, which the system gives up when the process ends."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return
    file.seek(LOCKED_BYTE)  # Windows; nobody can read what is locked there, so that is behind what is written
    while True:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            return
        except PermissionError:
            if not wait:
                raise
            time.sleep(0.1)


def write_text(path: Path, text: str) -> None:
    """Writes a file in one step: a reader sees the old content or the new, never a part."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """As `write_text`, for bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path)
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _beside(path: Path) -> Path:
    """A name that nobody else uses for what will be called `path`. Whoever may read what is made there is for the process to say (umask),
    unlike in the private files of `tempfile`."""
    return path.parent / f".{path.name}.{secrets.token_hex(4)}"


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that takes its name `path`, replacing an older one, only once the block has succeeded."""
    partial = _beside(path)
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            shutil.rmtree(path)
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def vacant_folder(path: Path, field: str = "folder") -> Iterator[Path]:
    """As `new_folder`, at a `vacant_place`, through links; what has come there meanwhile is not replaced.

    Raises:
        PrunusError: something has come there, or the disk is full.
    """
    with new_folder(Path(os.path.realpath(path))) as partial, room_on_disk(partial, path, field):
        yield partial
        refuse_taken(path, field)


@contextmanager
def disk_errors(folder: Path, then: str) -> Iterator[None]:
    """What the disk refuses within the context becomes one error that says what follows once it no longer does.

    Raises:
        PrunusError: a file cannot be written or read.
    """
    try:
        yield
    except OSError as error:
        where, why = error.filename2 or error.filename or folder, error.strerror or error
        raise PrunusError("output", str(where), f"it cannot be written or read ({why}); {then}") from error


@contextmanager
def saved_in_passing() -> Iterator[None]:
    """While the context is open, folders of models are saved for a work that goes on, and need not explain themselves: what is in them may
    have parts, such as adapters, that go before it ends."""
    token = _in_passing.set(True)
    try:
        yield
    finally:
        _in_passing.reset(token)


def is_in_passing() -> bool:
    """Whether a context of `saved_in_passing` is open."""
    return _in_passing.get()
