"""A recipe in two processes under torchrun, one of which dies by SIGKILL: whether it ends, started again, with the bits of an undisturbed run.

`python -m benchmarks.many_processes kill` tries it 20 times: at any moment, while processes start, while a checkpoint is written, and while
the last model is saved. Needs Linux.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from unittest import mock

import torch
import yaml
from safetensors.torch import load_file

from prunus.parallel import leave
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
KINDS = ("at work", "starting", "at work", "checkpoint", "last model")
"""When a process dies, in turn."""
CHECKPOINTS = [f"{step}/checkpoints/checkpoint-{number}" for step in ("1-search", "3-repair") for number in (2, 4)]
PATIENCE = 300
"""Seconds after which a run counts as one that hangs."""
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


class Run:
    """Two processes that carry the recipe out in a folder of its own, or go on with it."""

    def __init__(self, place: Path):
        self.folder, file = place / "run", place / "recipe.yaml"
        place.mkdir(exist_ok=True)
        file.write_text(yaml.safe_dump({**RECIPE, "output": str(self.folder)}))
        self._log = place / "log"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--monitor-interval", "0.1"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *launcher, "-m", "benchmarks.killed", str(file)], stdout=log, stderr=log,
                env={**os.environ, **THREADS, "PRUNUS_CACHE": str(place / "cache")},
            )  # fmt: skip
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    @property
    def is_over(self) -> bool:
        return self._process.poll() is not None

    def workers(self) -> dict[int, int]:
        """Rank → process, of those that are there."""
        command = ["pgrep", "-P", str(self._process.pid)]
        found = {}
        for pid in subprocess.run(command, capture_output=True, text=True, check=False).stdout.split():
            with suppress(OSError):
                for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    if entry.startswith(b"RANK="):
                        found[int(entry[5:])] = int(pid)
        return found

    def is_started(self) -> bool:
        """Whether both processes are there."""
        return len(self.workers()) == 2

    def reaches(self, condition: Callable[[], bool], every: float = 0.001) -> bool:
        """Waits for something to be so; False if the run is over before."""
        while not self.is_over:
            if condition():
                return True
            if self.seconds > PATIENCE:
                self.end()
            time.sleep(every)
        return False

    def end(self) -> int:
        """The status with which it ends.

        Raises:
            SystemExit: it hangs.
        """
        try:
            return self._process.wait(max(PATIENCE - self.seconds, 1))
        except subprocess.TimeoutExpired:
            self._process.terminate()  # torchrun ends its processes, too
            raise SystemExit(f"after {self.seconds:.0f} s it still runs:\n{self._log.read_text()[-3000:]}") from None

    def finish(self) -> dict[str, torch.Tensor]:
        """The last model, once the run has ended well."""
        if self.end():
            raise SystemExit(f"it has failed:\n{self._log.read_text()[-3000:]}")
        return dict(load_file(self.folder / "3-repair" / "model" / "model.safetensors"))


def timed(run: Run) -> tuple[float, float, float]:
    """Seconds until two processes are there, until they begin to work, and to the end, of an undisturbed run."""
    times = []
    for sign in (run.is_started, (run.folder / "recipe.yaml").exists):
        run.reaches(sign, every=0.05)
        times.append(run.seconds)
    run.finish()
    return times[0], times[1], run.seconds


def moment(
    kind: str, run: Run, times: tuple[float, float, float], draw: random.Random
) -> tuple[str, Callable[[], bool]]:
    """When to kill: in words, and as a condition."""
    there, begun, end = times
    if kind == "checkpoint":
        path = draw.choice(CHECKPOINTS)
        folder = run.folder / path
        return f"while {path} is written", lambda: folder.exists() and not (folder / "complete").exists()
    if kind == "last model":
        step = run.folder / "3-repair"
        return "while the last model is saved", lambda: step.exists() and any(step.glob(".model.*"))
    at = draw.uniform(there, begun) if kind == "starting" else draw.uniform(begun, end)
    return f"{kind}, after {at:.1f} s of {end:.1f}", lambda: run.seconds >= at


def interrupted(place: Path, times: int) -> Iterator[tuple[str, int, bool]]:
    """When a process died, which, and whether the run, started again, has ended with the bits of an undisturbed one."""
    whole = Run(place / "whole")
    seconds = timed(whole)
    expected, draw = whole.finish(), random.Random(0)
    for number in range(times):
        run = Run(place / str(number))
        said, condition = moment(KINDS[number % len(KINDS)], run, seconds, draw)
        rank = draw.randrange(2)
        pids = run.workers() if run.reaches(run.is_started, every=0.05) else {}
        if run.reaches(condition):
            with suppress(ProcessLookupError):
                os.kill(pids[rank], signal.SIGKILL)
        status, found = run.end(), Run(place / str(number)).finish()
        same = all(torch.equal(found[name], value) for name, value in expected.items())
        yield said if status else f"{said}: over before", rank, same


def kill(times: int) -> None:
    """Prints a table of so many interrupted runs."""
    print("| | a process died | rank | the same bits |\n| --- | --- | --- | --- |", flush=True)
    start, good = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as place:
        for number, (said, rank, same) in enumerate(interrupted(Path(place), times), start=1):
            good += same
            print(f"| {number} | {said} | {rank} | {'yes' if same else 'NO'} |", flush=True)
    print(f"{good} of {times} with the same bits, in {(time.monotonic() - start) / 60:.0f} minutes")


def main() -> None:
    """One of the processes: the recipe, without what is measured in the end."""
    module = import_module("prunus.run")
    with mock.patch.object(module, "compare"), mock.patch.object(module, "write_report"):
        module.run(load_recipe(sys.argv[1]))
    leave()


if __name__ == "__main__":
    main()
