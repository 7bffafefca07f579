"""A folder that is being made from another one, and the journal of how far it is: work that dies goes on where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch

from prunus.checkpoint.checksums import CHECKSUMS
from prunus.checkpoint.shards import Shards
from prunus.errors import PrunusError
from prunus.storage import LOCK, claim_folder, locked, write_text

JOURNAL = "prunus-journal.json"


class Work:
    """The output folder while it is being made, and its journal: which blocks are finished."""

    def __init__(self, folder: Path, request: str):
        self.folder, self._request = folder, request
        self.done: dict[str, dict[str, int]] = {}
        self.calibration: str | None = None
        self._is_new = False

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Keeps the folder for this process.

        Raises:
            PrunusError: it holds other things than unfinished work, or another process is at work in it.
        """
        claim_folder(self.folder, JOURNAL)
        with ExitStack() as held:
            with self.writing():
                held.enter_context(locked(self.folder))
            yield

    def begin(self, shards: Shards, dtypes: Mapping[str, torch.dtype]) -> None:
        """Takes up earlier work, or copies the source, with other types for some tensors."""
        if (self.folder / JOURNAL).exists():
            try:
                journal = json.loads((self.folder / JOURNAL).read_text())
                copied, request, done, calibration = (journal[n] for n in ("copied", "request", "done", "calibration"))
                done = {block: {name: int(count) for name, count in counts.items()} for block, counts in done.items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise PrunusError(
                    "output", str(self.folder), f"its {JOURNAL} is damaged ({error}); delete the folder"
                ) from None
            if copied and request != self._request:
                raise PrunusError(
                    "output",
                    str(self.folder),
                    "it holds unfinished work with other settings; finish that, or delete the folder",
                )
            if copied:
                self.done, self.calibration = done, calibration
                return
        with self.writing():
            try:
                self._write(copied=False)
                shutil.copytree(
                    shards.folder, self.folder, copy_function=shutil.copyfile, ignore=partial(_left_behind, shards),
                    dirs_exist_ok=True,
                )  # fmt: skip
                for path in (self.folder, *self.folder.rglob("*")):
                    path.chmod(path.stat().st_mode | (0o700 if path.is_dir() else 0o600))
                shards.copy(self.folder, dtypes)
                self._write()
                self._is_new = True
            except BaseException:
                shutil.rmtree(self.folder, ignore_errors=True)
                raise

    def finish(self, block: str, counts: Mapping[str, int], calibration: str) -> None:
        """Notes a block whose weights are on disk."""
        self.done[block], self.calibration = dict(counts), calibration
        self._write()

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
                "output",
                str(self.folder),
                f"it cannot be written ({reason}); mend that and call again: finished blocks stay",
            ) from None

    def _write(self, copied: bool = True) -> None:
        journal = {"copied": copied, "request": self._request, "calibration": self.calibration, "done": self.done}
        write_text(self.folder / JOURNAL, json.dumps(journal) + "\n")


OTHER_WEIGHTS = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".tflite", ".npz"}
)


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
        or name in (".git", ".cache", CHECKSUMS, JOURNAL, LOCK)
    ]
