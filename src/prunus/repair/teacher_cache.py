"""The teacher's largest logits on disk, one entry a training item, so that its forward passes are paid for once.

Entries are only good for items that are the same whenever they are read; every item is compared with what the teacher saw,
and training on data that change (random crops, random prompts) is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import Dataset

from prunus.errors import PrunusError
from prunus.fingerprint import Fingerprint
from prunus.losses import Predict
from prunus.modules import quiet
from prunus.parallel import agreeing, is_ours
from prunus.progress import track
from prunus.repair.distillation import Distillation, Teacher, top_k_divergence
from prunus.storage import write_bytes

VALUES, PLACES = "teacher_values", "teacher_places"
ITEMS_PER_FILE = 256


class TeacherCache:
    """The k largest logits of every position that predicts a target.

    Args:
        folder: where the files are; those that are there already are used.
        method: with `top_k`.
        predict: what a model says about a batch.
        data: training items by index, with a length.
        collate: makes batches of them.

    Raises:
        PrunusError: the items change from epoch to epoch.
    """

    def __init__(
        self, folder: Path, method: Distillation, predict: Predict, data: Dataset[Any],
        collate: Callable[[list[Any]], dict[str, Any]],
    ):  # fmt: skip
        assert method.top_k is not None
        if hasattr(data, "set_epoch"):
            raise PrunusError(
                "distillation.top_k", method.top_k, "the training items change from epoch to epoch, and the teacher's logits would be those of one; "
                "leave it out, or the augmentation",
            )  # fmt: skip
        self.folder, self.method, self.predict = folder, method, predict
        self.data, self._collate = _Numbered(data), collate
        self._digests: dict[int, str] = {}
        self._files: dict[int, Any] = {}

    @torch.no_grad()
    def fill(self, teacher: Teacher, device: torch.device | None = None) -> None:
        """Asks the teacher about every item that no file holds yet.

        Args:
            device: where the teacher runs; by default where it is.

        Raises:
            PrunusError: files of another teacher, other data or another k are there.
        """
        size = len(self.data)
        with teacher() as model, quiet(model if device is None else model.to(device)):
            self._about = {"k": str(self.method.top_k), "items": str(size), "teacher": str(_checksum(model))}
            starts = range(0, size, ITEMS_PER_FILE)
            with agreeing():  # each process asks about a part
                for number, start in enumerate(track(starts, "teacher")):
                    if is_ours(number) and not self._file(start).exists():
                        write_bytes(
                            self._file(start), self._ask(model, range(start, min(start + ITEMS_PER_FILE, size)))
                        )
            for start in starts:
                self._read(self._file(start))

    def _file(self, start: int) -> Path:
        return self.folder / f"{start:08d}.safetensors"

    def collate(self, items: list[tuple[int, Any]]) -> dict[str, Any]:
        """A batch with the teacher's logits, (positions, k), in the order of the student's counted positions.

        Raises:
            PrunusError: an item is not what it was when the teacher saw it.
        """
        for number, item in items:
            if self._digest(item) != self._digests[number]:
                raise PrunusError(
                    "distillation.top_k", f"item {number}", "it is not what it was when the teacher saw it; stored logits need data "
                    "without randomness: leave top_k out, or make the data deterministic",
                )  # fmt: skip
        batch = self._collate([item for _, item in items])
        numbers = [number for number, _ in items]
        batch[VALUES] = torch.cat([self._files[number].get_tensor(f"{number}.values") for number in numbers])
        batch[PLACES] = torch.cat([self._files[number].get_tensor(f"{number}.places") for number in numbers]).long()
        return batch

    def loss(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """The training loss of a batch from `collate`."""
        inputs = dict(batch)
        values, places = inputs.pop(VALUES), inputs.pop(PLACES)
        student = self.predict(model, inputs)
        logits = student.logits[student.counted]
        if len(logits) != len(values):
            raise PrunusError(
                "distillation.top_k", f"{len(values)} positions", f"the batch has {len(logits)}; its items' targets depend on each other, so leave top_k out"
            )  # fmt: skip
        divergence = top_k_divergence(logits, values, places, self.method.temperature).sum() / max(len(logits), 1)
        return self.method.loss(student.loss, divergence)

    def _ask(self, teacher: nn.Module, numbers: range) -> bytes:
        assert self.method.top_k is not None
        stored: dict[str, Tensor] = {}
        digests: dict[str, str] = {}
        for number in numbers:
            item = self.data[number][1]
            prediction = self.predict(teacher, self._collate([item]))
            logits = prediction.logits[prediction.counted]
            if logits.shape[-1] < self.method.top_k:
                raise PrunusError(
                    "distillation.top_k", self.method.top_k, f"there are only {logits.shape[-1]} logits a position"
                )
            values, places = logits.float().topk(self.method.top_k, dim=-1)
            stored[f"{number}.values"], stored[f"{number}.places"] = values.cpu(), places.int().cpu()
            digests[str(number)] = self._digest(item)
        return bytes(save(stored, metadata=digests | self._about))

    def _read(self, path: Path) -> None:
        try:
            file: Any = safe_open(path, "pt")  # stays open and is read as items are asked for: logits are many
            known = dict(file.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise PrunusError("teacher", str(path), f"the file is damaged ({error}); delete it") from None
        for name, ours in self._about.items():
            theirs = known.pop(name, "nothing")
            if theirs != ours:
                raise PrunusError(
                    "teacher", str(path), f"it was made with {name} {theirs}, not {ours}; delete its folder"
                )
        for number, digest in known.items():
            self._digests[int(number)], self._files[int(number)] = digest, file

    def _digest(self, item: Any) -> str:
        seen = Fingerprint([self._collate([item])])
        for _ in seen:
            pass
        return seen.digest


def _checksum(model: nn.Module) -> int:
    """Of a model's parameters, by all of their bytes."""
    total = 0
    for parameter in model.parameters():
        total = crc32(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy().data, total)
    return total


class _Numbered(Dataset[Any]):
    """Items with their numbers."""

    def __init__(self, data: Dataset[Any]):
        self._data = data

    def __len__(self) -> int:
        return len(self._data)  # type: ignore[arg-type]

    def __getitem__(self, number: int) -> tuple[int, Any]:
        return number, self._data[number]
