"""The teacher's largest logits on disk, one entry a training item, so that its forward passes are paid for once.

Entries are only good for items that are the same whenever they are read; every item is compared with what the teacher saw,
and training on data that change (random crops, random prompts) is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import Dataset

from prunus.errors import PrunusError
from prunus.losses import Predict
from prunus.repair.distillation import Distillation, Teacher, top_k_divergence
from prunus.storage import write_bytes
from prunus.unstructured.fingerprint import Fingerprint
from prunus.unstructured.walk import quiet

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
    """

    def __init__(
        self, folder: Path, method: Distillation, predict: Predict, data: Dataset[Any],
        collate: Callable[[list[Any]], dict[str, Any]],
    ):  # fmt: skip
        assert method.top_k is not None
        self.folder, self.method, self.predict = folder, method, predict
        self.data, self._collate = _Numbered(data), collate
        self._known: dict[int, tuple[Tensor, Tensor, str]] = {}

    @torch.no_grad()
    def fill(self, teacher: Teacher) -> None:
        """Asks the teacher about every item that no file holds yet."""
        size = len(self.data)
        with teacher() as model, quiet(model):
            for start in track(range(0, size, ITEMS_PER_FILE), "teacher", transient=True):
                path = self.folder / f"{start:08d}.safetensors"
                if not path.exists():
                    write_bytes(path, self._ask(model, range(start, min(start + ITEMS_PER_FILE, size))))
                self._read(path)

    def collate(self, items: list[tuple[int, Any]]) -> dict[str, Any]:
        """A batch with the teacher's logits, (positions, k), in the order of the student's counted positions.

        Raises:
            PrunusError: an item is not what it was when the teacher saw it.
        """
        for number, item in items:
            if self._digest(item) != self._known[number][2]:
                raise PrunusError(
                    "distillation.top_k", f"item {number}", "it is not what it was when the teacher saw it; stored logits need data "
                    "without randomness: leave top_k out, or make the data deterministic",
                )  # fmt: skip
        batch = self._collate([item for _, item in items])
        batch[VALUES] = torch.cat([self._known[number][0] for number, _ in items])
        batch[PLACES] = torch.cat([self._known[number][1] for number, _ in items]).long()
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
        return bytes(save(stored, metadata=digests))

    def _read(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                for number, digest in (file.metadata() or {}).items():
                    values, places = file.get_tensor(f"{number}.values"), file.get_tensor(f"{number}.places")
                    self._known[int(number)] = values, places, digest
        except (SafetensorError, OSError) as error:
            raise PrunusError("teacher", str(path), f"the file is damaged ({error}); delete it") from None

    def _digest(self, item: Any) -> str:
        seen = Fingerprint([self._collate([item])])
        for _ in seen:
            pass
        return seen.digest


class _Numbered(Dataset[Any]):
    """Items with their numbers."""

    def __init__(self, data: Dataset[Any]):
        self._data = data

    def __len__(self) -> int:
        return len(self._data)  # type: ignore[arg-type]

    def __getitem__(self, number: int) -> tuple[int, Any]:
        return number, self._data[number]
