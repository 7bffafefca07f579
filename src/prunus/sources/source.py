"""What every source of a recipe is: where the dense model comes from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from prunus.errors import PrunusError
from prunus.extensions import load_installed
from prunus.tasks import Task
from prunus.training import Training
from prunus.typed import Typed, known


class Source(Typed):
    """Base of the sources. One of your own needs a name, `skeleton`, and one of `folder` and `build`."""

    source: str
    """The name by which recipes find it."""
    train: tuple[Training, ...] = ()
    """Phases of training before compression; the trained model is cached for the next run."""

    def data_state(self) -> list[Any]:
        """What tells states of data apart that the model follows from, beside its settings, in JSON."""
        return []

    @abstractmethod
    def skeleton(self, task: Task) -> PreTrainedModel:
        """The model without weights, to say early what is impossible; called under `torch.device("meta")`."""

    def folder(self, cache: Path) -> Path | None:
        """Folder of the model, which is fetched or unpacked (into `cache`) if need be; None if `build` makes the model."""
        return None

    def build(self, task: Task) -> PreTrainedModel:
        """Makes the model with its weights. Random numbers are seeded by the recipe, and the result is cached."""
        raise PrunusError("model.source", self.source, "its class has neither folder nor build; write one of them")

    def check(self, task: Task, folder: Path) -> None:
        """Says what is wrong with the model, as it lies in a folder, before it is compressed.

        Raises:
            PrunusError: see above.
        """


def with_tag(entry: object) -> object:
    """The short form of a source in full: `random: {…}` is `{source: random, random: {…}}`."""
    if not isinstance(entry, Mapping) or "source" in entry:
        return entry
    names = known(Source, "source")
    given = {field: value for field, value in entry.items() if field not in names or value is not None}
    chosen = [name for name in names if name in given]
    if not chosen and any(field not in Source.model_fields for field in given):
        load_installed()
        chosen = [name for name in known(Source, "source") if name in given]
    if len(chosen) != 1:
        raise PrunusError("path", entry.get("path"), f"give one of {', '.join(names)}")
    return {"source": chosen[0], **given}
