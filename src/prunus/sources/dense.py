"""The dense model that a recipe starts from: given, or made and trained, and kept in the cache."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import partial
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedModel

from prunus.parallel import after_first, in_first, of_first, processes, several
from prunus.sources.source import Source
from prunus.steps import Bench
from prunus.storage import cache_folder, locked, write_text
from prunus.tasks import Task

SETTINGS_OF_0_1 = ("path", "packaged", "random", "warm_start")


def dense_folder(source: Source, task: Task, seed: int, console: Console) -> Path:
    """Folder of the dense model: the given one, or a freshly made one, from the cache if it is there."""
    given = after_first(lambda: source.folder(cache_folder()))
    if given is not None and not source.train:
        return given
    folder = cache_folder() / f"dense-{task.name}-{_key(source, task, seed)}"
    start = given or folder / "model"
    bench = Bench(task, seed, folder, current=start, unpruned=start, dense=start)
    with in_first(locked(folder, "cache", wait=True)):
        if of_first(bench.output.exists()):
            console.print(f"dense model: cached in {folder}", markup=False, soft_wrap=True)
            return bench.output
        console.rule("dense model")
        bench.seed_generators()
        model = source.build(task) if given is None else bench.load()
        bench = dataclasses.replace(bench, task=task.for_model(given or described(model, folder / "config")))
        course: list[dict[str, float]] = []
        for phase, training in enumerate(source.train, start=1):
            title = f"dense {phase}/{len(source.train)}" if len(source.train) > 1 else "dense"
            course += bench.train(model, training, title, folder=folder / f"phase-{phase}")
        bench.keep("course.json", partial(write_text, text=json.dumps({"log": course})))
        bench.save(model)
    return bench.output


def described(model: PreTrainedModel, folder: Path) -> Path:
    """A folder with a model's config, for a task to see what it is.

    Args:
        model: with or without weights.
        folder: which is made.

    Returns:
        The folder.
    """
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    return folder


def _key(source: Source, task: Task, seed: int) -> str:
    """What tells dense models apart; of sources that 0.1 knew it is what 0.1 wrote, so that its caches are found, unless data of the user's
    were trained on, or several processes trained.
    """
    settings = {**source.model_dump(mode="json"), "train": [training.identity() for training in source.train]}
    if source.source in SETTINGS_OF_0_1:
        settings = {**dict.fromkeys(SETTINGS_OF_0_1), **settings}
        del settings["source"]
    known = [settings, task.model_dump(mode="json"), seed]
    known += [processes()] if several() and source.train else []
    known += [state for state in (task.data_state() if source.train else [], source.data_state()) if state]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
