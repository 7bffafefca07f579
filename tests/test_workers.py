"""Worker processes make batches: what is learned is the same, also when a training is gone on with; what they refuse is said."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from prunus import PrunusError, Training
from prunus.data import BrokenImage
from prunus.evaluation import read_task
from prunus.extensions import load_extension
from prunus.training import finetune
from prunus.training.workers import Carried, Carrying
from tests import lookers
from tests.families import build

STEPS = 8


class Drawn(Dataset[Tensor]):
    """Eleven items that differ from epoch to epoch, as augmented ones do."""

    epoch = 0
    broken = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 11

    def __getitem__(self, index: int) -> Tensor:
        if index == self.broken:
            raise BrokenImage("rows.jsonl:7: image", "a.jpg", "there is no such file")
        return torch.randint(10, 40, (7,), generator=torch.Generator().manual_seed(1000 * self.epoch + index))


class StopError(Exception):
    pass


def trained(
    folder: Path, workers: int, stop_at: int | None = None, data: Any = None, collate: Any = None
) -> dict[str, Tensor]:
    model = build("llama", 4).model
    training = Training(steps=STEPS, batch_size=3, learning_rate=1e-2, bf16=False, save_every=3, workers=workers)
    steps = 0

    def loss(model: Any, batch: dict[str, Any]) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == stop_at:
            raise StopError
        return model(**batch, labels=batch["input_ids"]).loss  # type: ignore[no-any-return]

    finetune(model, training, folder, data or Drawn(), collate or (lambda rows: {"input_ids": torch.stack(rows)}), loss)
    return dict(model.state_dict())


def test_workers_change_nothing_not_even_where_a_training_is_gone_on_with(tmp_path: Path) -> None:
    alone = trained(tmp_path / "alone", 0)
    for name, workers, then in (("two", 2, 2), ("none, then two", 0, 2)):
        with pytest.raises(StopError):
            trained(tmp_path / name, workers, stop_at=6)
        resumed = trained(tmp_path / name, then)
        assert all(torch.equal(value, resumed[key]) for key, value in alone.items())


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_worker_refuses_is_said_as_it_is(workers: int, tmp_path: Path) -> None:
    data = Drawn()
    data.broken = 5
    with pytest.raises(BrokenImage, match="there is no such file") as error:
        trained(tmp_path / "item", workers, data=data)
    assert error.value.field == "rows.jsonl:7: image"

    def collate(rows: list[Tensor]) -> dict[str, Any]:
        raise PrunusError("text", 5, "give text")

    with pytest.raises(PrunusError, match="text = 5: give text"):
        trained(tmp_path / "batch", workers, collate=collate)


def test_what_is_not_forked_is_handed_the_classes_of_others(tmp_path: Path) -> None:
    file = tmp_path / "own_items.py"
    file.write_text("class Squares(list):\n    pass\n\n\ndef total(rows):\n    return {'total': sum(rows)}\n")
    module = load_extension(file)
    handed = pickle.dumps((Carried(module.Squares([1, 4, 9])), Carrying(module.total)))
    del sys.modules[module.__name__]
    data, collate = pickle.loads(handed)
    assert collate([data[1], data[2]]) == {"total": 13}


def test_what_is_not_forked_is_handed_a_task_over_data(tmp_path: Path) -> None:
    rows = lookers.captioned(tmp_path / "rows")
    settings = {"name": "retrieval", "train": str(rows), "augment": {"augmentation": "blip"}}
    task = read_task(json.dumps(settings)).for_model(lookers.saved("clip", tmp_path / "model"))
    data, collate = Carried(task.train_data()), Carrying(task.collate)
    wanted = collate([data[0], data[1]])
    again, recollate = pickle.loads(pickle.dumps((data, collate)))
    found = recollate([again[0], again[1]])
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
