"""Any task of lmms-eval in which a model writes something about images, by prunus' own way of asking each kind of model."""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prunus.batches import default_device
from prunus.checkpoint import load_model
from prunus.errors import PrunusError, refusing
from prunus.evaluation.harness import numbers_in
from prunus.tasks import Speaker, kind_of

NEW_TOKENS = 128
"""That an answer has at the most, where a task does not say."""


def lmms_scores(folder: Path, tasks: Sequence[str], limit: int | None = None, batch_size: int = 16) -> dict[str, float]:
    """Scores of a saved model on tasks of lmms-eval, as {"task metric": value}.

    Args:
        folder: of a model that speaks about images, with its processor.
        tasks: names of lmms-eval's; of each the model has to write its answers.
        limit: documents per task.

    Raises:
        PrunusError: lmms-eval is not installed, knows no such task, or cannot run it: its data are not here, it asks for more than written
            answers, or the model is not one that speaks about images.
    """
    if find_spec("lmms_eval") is None:
        raise PrunusError("--harness", "lmms-eval", "it is not installed; run: pip install lmms-eval")
    evaluator, registry = (importlib.import_module(f"lmms_eval.{name}") for name in ("evaluator", "tasks"))
    kind = kind_of(Speaker, str(folder))  # type: ignore[type-abstract]
    kind.check()
    manager = registry.TaskManager(model_name="prunus")
    for task in tasks:
        if task not in manager.all_tasks:
            raise PrunusError("--tasks", task, "lmms-eval has no such task")
    model: Any = load_model(folder).eval().to(default_device())
    with refusing("--tasks", ",".join(tasks), "lmms-eval cannot run it"):
        answer = evaluator.simple_evaluate(
            model=_adapter()(model, kind, batch_size), tasks=list(tasks), limit=limit, batch_size=batch_size, task_manager=manager,
            cli_args=Namespace(process_with_media=True),
        )  # fmt: skip
    return numbers_in(answer["results"])


def _adapter() -> type[Any]:
    """The class that lmms-eval calls; its base is there only where lmms-eval is."""
    base: Any = importlib.import_module("lmms_eval.api.model").lmms

    class Adapter(base):  # type: ignore[misc]
        """A model and the kind it is of, behind lmms-eval's interface."""

        is_simple = True

        def __init__(self, model: Any, kind: Speaker, batch_size: int):
            super().__init__()
            self.model, self.kind, self.batch_size = model, kind, batch_size

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            said = [""] * len(requests)
            for places in _alike(requests, self.batch_size):
                asked = [requests[place].args for place in places]
                how = dict(asked[0][1])
                if how.get("do_sample") or how.get("temperature"):
                    raise PrunusError(
                        "--tasks", asked[0][4], "it draws answers at random, and prunus takes the likeliest"
                    )
                images = [self._images(*each[2:]) for each in asked]
                beams = int(how.get("num_beams") or 1)
                texts = self.kind.generate(
                    self.model, images, [each[0] for each in asked], int(how.get("max_new_tokens") or NEW_TOKENS), beams
                )
                for place, text in zip(places, texts, strict=True):
                    said[place] = _until(text, how.get("until"))
            return said

        def _images(self, looks: Any, document: int, task: str, split: str) -> list[Any]:
            found = looks(self.task_dict[task][split][document]) or []
            if any(not hasattr(one, "convert") for one in found):
                raise PrunusError("--tasks", task, "it shows more than images; prunus speaks about images alone")
            return [one.convert("RGB") for one in found]

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            raise PrunusError(
                "--tasks", requests[0].args[-2], "it asks for likelihoods; take a task whose answers are written"
            )

        def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
            raise PrunusError("--tasks", requests[0].args[-2], "it asks in several rounds; take a task that asks once")

    return Adapter


def _alike(requests: Sequence[Any], count: int) -> Iterable[list[int]]:
    """Places of requests that are answered with the same settings, at most `count` at a time."""
    groups: dict[str, list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(repr(sorted(request.args[1].items())), []).append(place)
    return (places[first : first + count] for places in groups.values() for first in range(0, len(places), count))


def _until(text: str, ends: str | Sequence[str] | None) -> str:
    """A text up to the first of its ends."""
    for end in [ends] if isinstance(ends, str) else ends or ():
        text = text.split(end, maxsplit=1)[0] if end else text
    return text.strip()
