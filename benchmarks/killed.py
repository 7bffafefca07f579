"""A recipe in two processes, one of which dies by SIGKILL: whether it ends, started again, with the bits of an undisturbed run.

`python -m benchmarks.many_processes kill` tries it 20 times: at any moment, while the processes join, while a checkpoint is written, and
while the last model is saved. As torchrun does, the other process is ended once one has died; unlike there, both are divided off a process
that has imported everything, so that it takes minutes. Not on Windows.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from unittest import mock

import torch
import yaml
from safetensors.torch import load_file
from tests.forked import child

from prunus.recipe import load_recipe

TRAIN = {"steps": 4, "batch_size": 2, "learning_rate": 1e-3, "save_every": 2, "bf16": False}
RECIPE = {
    "model": {"random": {
        "model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 64, "num_attention_heads": 4,
        "intermediate_size": 256, "num_hidden_layers": 4, "image_size": 56, "patch_size": 14,
    }},
    "task": {"name": "noise", "items": 32},
    "steps": [
        {"step": "search", "method": {"ratio": 0.25, "interval": 1}, "train": TRAIN},
        {
            "step": "prune", "method": {"method": "sparsegpt"}, "allocate": {"method": "ecoflap"},
            "allocation_data": {"samples": 16, "batch_size": 2}, "calibration": {"samples": 32, "batch_size": 2},
        },
        {"step": "repair", "method": {"method": "masked_lora", "rank": 2}, "train": TRAIN},
    ],
}  # fmt: skip
KINDS = ("at work", "joining", "at work", "checkpoint", "last model")
"""When a process dies, in turn."""
CHECKPOINTS = [f"{step}/checkpoints/checkpoint-{number}" for step in ("1-search", "3-repair") for number in (2, 4)]
PATIENCE = 600
"""Seconds after which a run counts as one that hangs."""
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


class Run:
    """Two processes that carry the recipe out in a folder of its own, or go on with it."""

    def __init__(self, place: Path):
        self.folder, self._recipe, self._log = place / "run", place / "recipe.yaml", place / "log"
        place.mkdir(exist_ok=True)
        self._recipe.write_text(yaml.safe_dump({**RECIPE, "output": str(self.folder)}))
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self._start = time.monotonic()
        self._running = {rank: child(partial(self._carry_out, rank, port)) for rank in range(2)}
        self.statuses: list[int] = []

    def _carry_out(self, rank: int, port: int) -> None:
        with self._log.open("ab") as log:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=str(port),
            PRUNUS_CACHE=str(self._recipe.parent / "cache"),
        )  # fmt: skip
        module = import_module("prunus.run")
        with (
            mock.patch.object(module, "compare"),
            mock.patch.object(module, "write_report"),
        ):  # bits are what counts here
            module.run(load_recipe(self._recipe))

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    def reaches(self, condition: Callable[[], bool]) -> bool:
        """Waits for something to be so; False if the run is over before.

        Raises:
            SystemExit: it hangs.
        """
        while not condition():
            if self.seconds > PATIENCE:
                self.end()
                raise SystemExit(f"after {PATIENCE} s it still runs:\n{self._log.read_text()[-3000:]}")
            for rank, pid in [*self._running.items()]:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    del self._running[rank]
                    self.statuses.append(status)
            if not self._running or any(self.statuses):
                return False
            time.sleep(0.001)
        return True

    def kill(self, rank: int) -> None:
        """One process dies, and the other is ended."""
        if rank in self._running:
            os.kill(self._running[rank], signal.SIGKILL)
            self.statuses.append(os.waitpid(self._running.pop(rank), 0)[1])
        self.end()

    def end(self) -> None:
        """Ends what still runs."""
        for pid in self._running.values():
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
        self._running.clear()

    def finish(self) -> dict[str, torch.Tensor]:
        """The last model, once the run has ended well.

        Raises:
            SystemExit: it has not.
        """
        self.reaches(lambda: False)
        if any(self.statuses):
            self.end()
            raise SystemExit(f"it has failed:\n{self._log.read_text()[-3000:]}")
        return dict(load_file(self.folder / "3-repair" / "model" / "model.safetensors"))


def moment(kind: str, run: Run, begins: float, ends: float, draw: random.Random) -> tuple[str, Callable[[], bool]]:
    """When to kill: in words, and as a condition."""
    if kind == "checkpoint":
        path = draw.choice(CHECKPOINTS)
        folder = run.folder / path
        return f"while {path} is written", lambda: folder.exists() and not (folder / "complete").exists()
    if kind == "last model":
        step = run.folder / "3-repair"
        return "while the last model is saved", lambda: step.exists() and any(step.glob(".model.*"))
    at = draw.uniform(0, begins) if kind == "joining" else draw.uniform(begins, ends)
    return f"{kind}, after {at:.2f} s of {ends:.2f}", lambda: run.seconds >= at


def interrupted(place: Path, times: int) -> Iterator[tuple[str, int, bool]]:
    """When a process died, which, and whether the run, started again, has ended with the bits of an undisturbed one."""
    whole, draw = Run(place / "whole"), random.Random(0)
    whole.reaches((whole.folder / "recipe.yaml").exists)
    begins = whole.seconds
    expected, ends = whole.finish(), whole.seconds
    for number in range(times):
        run, rank = Run(place / str(number)), draw.randrange(2)
        said, condition = moment(KINDS[number % len(KINDS)], run, begins, ends, draw)
        reached = run.reaches(condition)
        run.kill(rank)
        found = Run(place / str(number)).finish()
        same = all(torch.equal(found[name], value) for name, value in expected.items())
        yield said if reached else f"{said}: over before", rank, same


def kill(times: int) -> None:
    """Prints a table of so many interrupted runs."""
    import_module("prunus.training.trainer")  # once for all
    print("| | a process died | rank | the same bits |\n| --- | --- | --- | --- |", flush=True)
    start, good = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as place:
        for number, (said, rank, same) in enumerate(interrupted(Path(place), times), start=1):
            good += same
            print(f"| {number} | {said} | {rank} | {'yes' if same else 'NO'} |", flush=True)
    print(f"{good} of {times} with the same bits, in {(time.monotonic() - start) / 60:.1f} minutes")
