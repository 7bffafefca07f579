"""How long the demo's training loop waits for data: the share of its time that is spent in fetching the next batch.

    python -m benchmarks.data_wait [--steps 30] [--workers 0 1 2]

The first row is the recipe as it is. Weights are random, which changes no time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from prunus.recipe import demo_recipe
from prunus.training import Training, finetune
from prunus.training.trainer import TaskTrainer


def measured(workers: int, steps: int) -> tuple[float, float]:
    """Seconds of a training of the demo's last phase before compression, and those in which it waits for data.

    The first step is left out: images are read and resized then, once for all.
    """
    recipe = demo_recipe()
    task, phase = recipe.task, recipe.model.train[-1]
    torch.manual_seed(0)
    model = task.skeleton(**recipe.model.warm_start)  # type: ignore[attr-defined]
    training = Training.model_validate(
        {**phase.model_dump(), "steps": steps + 1, "save_every": steps + 1, "evaluate_every": None, "workers": workers}
    )
    waits: list[tuple[float, float]] = []
    fetch = TaskTrainer.get_batch_samples

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        found = fetch(self, *args, **kwargs)
        waits.append((start, time.perf_counter()))
        return found

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(TaskTrainer, "get_batch_samples", timed):
        finetune(model, training, Path(folder), task.train_data(), task.collate, task.loss)
    return waits[-1][1] - waits[0][1], sum(end - start for start, end in waits[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    asked = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, {asked.steps} steps")
    for workers in asked.workers:
        whole, waited = measured(workers, asked.steps)
        print(f"workers {workers}: {whole / asked.steps:.3f} s a step, {waited / whole:.2%} of it waiting for data")


if __name__ == "__main__":
    main()
