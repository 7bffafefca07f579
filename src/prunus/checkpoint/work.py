"""An output folder while it is being made, under a name of its own beside its final one, so that interrupted work goes on where it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from prunus.checkpoint.checksums import CHECKSUMS, write_checksums
from prunus.checkpoint.shards import Shards
from prunus.errors import PrunusError
from prunus.storage import LOCK, claim_folder, locked, write_text


def refuse_places(source: Path, output: Path) -> None:
    """Refuses folders that cannot be read from and written to.

    Raises:
        PrunusError: the output exists, or lies in the source; the source is an adapter.
    """
    if output.exists():
        raise PrunusError("output", str(output), "it exists; choose another folder, or delete it")
    if output.resolve().is_relative_to(source.resolve()):
        raise PrunusError("output", str(output), "it lies in the source, which stays as it is; choose another folder")
    if (source / "adapter_config.json").exists():
        raise PrunusError("source", str(source), "the folder holds an adapter; merge it into its model, and save that")


def identity(shards: Shards) -> list[list[Any]]:
    """By what a source is known again: names, sizes and times of its files."""
    files = [shards.folder / file for file in ("config.json", *shards.files)]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def hashed(asked: Any) -> str:
    """SHA-256 of JSON."""
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


class Work:
    """The folder, and the journal in it.

    Args:
        folder: under the name that it has while the work lasts.
        journal: name of the file that says how far the work has come.
    """

    def __init__(self, folder: Path, journal: str):
        self.folder, self.journal = folder, journal
        self._is_new = False

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Keeps the folder for this process.

        Raises:
            PrunusError: it holds other things than unfinished work, or another process is at work in it.
        """
        claim_folder(self.folder, self.journal)
        with ExitStack() as held:
            with self.writing():
                held.enter_context(locked(self.folder))
            yield

    def read(self) -> dict[str, Any] | None:
        """The journal of earlier work; None if there is none."""
        path = self.folder / self.journal
        with self.understood():
            if not path.exists():
                return None
            found = json.loads(path.read_bytes())
            if not isinstance(found, dict):
                raise TypeError("it is no mapping")
            return found

    def write(self, journal: dict[str, Any]) -> None:
        """Says how far the work has come."""
        write_text(self.folder / self.journal, json.dumps(journal) + "\n")

    @contextmanager
    def understood(self) -> Iterator[None]:
        """A journal that is not what it should be becomes one error."""
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PrunusError(
                "output", str(self.folder), f"its {self.journal} is damaged ({error}); delete the folder"
            ) from None

    def refuse_other(self, noted: object, asked: str) -> None:
        """Refuses unfinished work that was asked for otherwise.

        Raises:
            PrunusError: see above.
        """
        if noted != asked:
            raise PrunusError(
                "output", str(self.folder), "it holds unfinished work with other settings; finish that, or delete the folder"
            )  # fmt: skip

    @contextmanager
    def whole_or_gone(self) -> Iterator[None]:
        """What is begun here is removed if it fails, now or when it is refused later."""
        try:
            yield
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self._is_new = True

    @contextmanager
    def unless_refused(self) -> Iterator[None]:
        """Work that was begun now and would be refused again is removed; what a full disk or a kill has stopped stays."""
        try:
            yield
        except PrunusError as error:
            if self._is_new and error.field != "output":
                shutil.rmtree(self.folder, ignore_errors=True)
            raise

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Errors of the disk become one that says what to do."""
        try:
            yield
        except (OSError, shutil.Error) as error:
            reason = error.args[0][0][-1] if isinstance(error, shutil.Error) else error.strerror or error
            raise PrunusError(
                "output", str(self.folder), f"it cannot be written ({reason}); mend that and call again: finished blocks stay"
            ) from None  # fmt: skip

    def finished(self, output: Path) -> None:
        """Gives the folder its checksums and its final name."""
        write_checksums(self.folder)
        self.folder.rename(output)
        for name in (self.journal, LOCK):
            (output / name).unlink()


OTHER_WEIGHTS = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".tflite", ".npz"}
)


JOURNALS = ("prunus-journal.json", "prunus-narrowing.json")


def copy_beside_weights(shards: Shards, folder: Path) -> None:
    """Copies what lies beside the weights: tokenizers, processors, indices."""
    shutil.copytree(
        shards.folder, folder, copy_function=shutil.copyfile, ignore=partial(_left_behind, shards), dirs_exist_ok=True
    )
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | (0o700 if path.is_dir() else 0o600))


def _left_behind(shards: Shards, folder: str, names: list[str]) -> list[str]:
    """What is not copied to the output: weights, which are copied apart from this, and copies of them that would stay
    dense; what version control and downloads keep; what would no longer be true."""
    if Path(folder) != shards.folder:
        return [name for name in names if str((Path(folder) / name).relative_to(shards.folder)) in shards.files]
    kept = {f"{file.partition('-')[0]}.safetensors.index.json" for file in shards.files}
    return [
        name
        for name in names
        if Path(name).suffix in OTHER_WEIGHTS
        or (name.endswith(".index.json") and name not in kept)
        or name in (".git", ".cache", CHECKSUMS, *JOURNALS, LOCK)
    ]
