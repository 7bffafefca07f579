"""Trainings that are killed in the middle of a step, and go on: `python -m tests.killed FOLDER` leaves weights there, by `torch.save`.

Every training runs in a process of its own, which divides from one that has imported everything.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image

import prunus.training.trainer  # noqa: F401 - or every process would import it
from prunus import Training, load_model
from prunus.evaluation import read_task
from prunus.training import finetune
from tests.forked import ended
from tests.lookers import coloured, saved

STEPS = 5
AUGMENTED = {"augment": {"augmentation": "deit", "repeats": 2}, "mixup": 0.8, "cutmix": 1.0}
LOADERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as they are": ({}, {}),
    "by workers": ({}, {"workers": 2}),
    "accumulated": ({}, {"gradient_accumulation": 2}),
    "repeated and mixed": (AUGMENTED, {}),
    "repeated and mixed by workers": (AUGMENTED, {"workers": 2}),
}
"""Settings of a task and of a training, by name."""


def trained(folder: Path, name: str, place: str, dies_at: int | None = None) -> None:
    """Trains, and leaves the weights; or is killed in that batch, counted from where it begins."""
    of_task, of_training = LOADERS[name]
    data = {"layout": "imagefolder", "folder": str(folder / "data")}
    task = read_task(json.dumps({"name": "classification", "train": data, **of_task})).for_model(folder / "model")
    steps = 0

    def loss(model: Any, batch: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return task.loss(model, batch)

    training = Training(steps=STEPS, batch_size=5, learning_rate=1e-3, save_every=2, bf16=False, **of_training)
    model = load_model(folder / "model")
    finetune(model, training, folder / name / place, task.train_data(), task.collate, loss)
    torch.save(model.state_dict(), folder / name / f"{place}.pt")


def main(folder: Path) -> None:
    os.environ["PRUNUS_CACHE"] = str(folder / "cache")
    coloured(folder / "data", 12)
    ended(lambda: saved("vit", folder / "model"))
    Image.init()
    for number, name in enumerate(LOADERS):
        draw = Random(number)
        assert ended(lambda name=name: trained(folder, name, "whole")) == 0
        batches = LOADERS[name][1].get("gradient_accumulation", 1)  # of a step
        for step in (draw.randint(3, STEPS) * batches, 1):  # behind a checkpoint, and in the first step after that
            assert ended(lambda name=name, step=step: trained(folder, name, "killed", step)) == signal.SIGKILL
        assert ended(lambda name=name: trained(folder, name, "killed")) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
