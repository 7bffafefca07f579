"""Classes of pictures, on a user's own data: by a classifier, or by a model that compares pictures with the names of classes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from prunus.calibration import Batch
from prunus.data import mixed
from prunus.errors import PrunusError
from prunus.metric import Metric
from prunus.metrics import top_figures, top_rows, with_interval
from prunus.tasks.class_names import all_names, called, places_among, renumbered
from prunus.tasks.exhibit import Exhibit
from prunus.tasks.kinds import Classifier, Labeller
from prunus.tasks.on_data import DataTask, Row


class Classification(DataTask):
    """Classification. A classifier's logits are those of its classes, found by their names where it has some; CLIP, SigLIP and
    their like compare a picture with a sentence about each class (zero-shot), and train on pairs of both.
    """

    name: Literal["classification"] = "classification"
    templates: tuple[str, ...] = ()
    """Sentences about a class, with {} for its name, whose mean it is compared by; none is "a photo of a {}."."""
    classes: tuple[str, ...] | None = None
    """Names of the classes by their numbers; None takes those of the data."""
    match: Literal["names", "numbers"] = "names"
    """How a classifier's classes are those of the data: by their names, where both have some, or by their numbers alone."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of a classifier's target that is spread over all classes."""
    mixup: float = Field(default=0.0, ge=0, le=100)
    """Of augmented pictures for a classifier: both parameters of the Beta distribution by which two are blended; 0 never blends."""
    cutmix: float = Field(default=0.0, ge=0, le=100)
    """Likewise, by which a box of one takes the place of the other's. With both, each batch has either."""

    metrics: ClassVar = {"top1": Metric(), "top5": Metric()}
    needs: ClassVar = ("image", "label")
    kinds: ClassVar = Labeller

    @model_validator(mode="after")
    def _versions_are_mixed(self) -> Classification:
        if (self.mixup or self.cutmix) and self.augment is None:
            raise PrunusError("mixup", max(self.mixup, self.cutmix), "augmented pictures are mixed; set augment, too")
        return self

    def check(self) -> None:
        super().check()
        for field in ("train", "evaluation"):
            if getattr(self, field) is not None:
                self.rows(field)

    def check_model(self, folder: Path) -> None:
        super().check_model(folder)
        kind = self.for_model(folder).kind
        kind.check_classes(self.names, self.templates)
        if (self.mixup or self.cutmix) and not isinstance(kind, Classifier):
            raise PrunusError("task.mixup", max(self.mixup, self.cutmix), "only classifiers learn from mixed ones")
        self.check_labels(len(self.names) if self.names else kind.config.num_labels)

    @property
    def names(self) -> list[str] | None:
        """Of the classes, by number: as given, or those of the split that has all of them."""
        splits = [data.class_names() for data in (self.train, self.evaluation) if data is not None]
        return all_names(self.classes, splits)

    def rows(self, field: str) -> Any:
        """As of the base, with labels that are numbers among `names`."""
        if field not in self._tables:
            table = super().rows(field)
            own, given = getattr(self, field).class_names(), self.classes is not None
            self._tables[field] = renumbered(table, places_among(self.names, own, f"task.{field}", given))
        return self._tables[field]

    def collate(self, items: Sequence[Any]) -> Batch:
        rows, sized = self.versions(items)
        labels = [int(row["label"]) for row in rows]
        pictures = [self.images(row)[0] for row in rows]
        batch: Batch = self.kind.labelled(pictures, labels, self.names, self.templates, sized)
        if sized and (self.mixup or self.cutmix):
            shares = F.one_hot(batch["labels"], self.kind.config.num_labels).float()
            draw = Random(rows[0]["drawn"])
            batch["pixel_values"], batch["labels"] = mixed(batch["pixel_values"], shares, self.mixup, self.cutmix, draw)
        return batch

    @cached_property
    def kind(self) -> Any:
        kind = super().kind
        kind.smoothing, kind.by_names = self.label_smoothing, self.match == "names"
        return kind

    def read_off(self, model: Any, rows: Sequence[Row]) -> Sequence[tuple[Tensor, int]]:
        """What the model makes of each picture, and its class."""
        seen = self.kind.look(model, [self.images(row)[0] for row in rows])
        return list(zip(seen, (int(row["label"]) for row in rows), strict=True))

    def tell(self, model: Any, rows: Sequence[Row]) -> Sequence[Exhibit]:
        """The likeliest class of each picture, by its name if it has one."""
        found = self.finish(model, self.read_off(model, rows))
        return [Exhibit(called(self.names, int(scores.argmax())), called(self.names, label)) for scores, label in found]

    def finish(self, model: Any, found: Sequence[tuple[Tensor, int]]) -> Sequence[tuple[Tensor, int]]:
        """The scores of the classes, and the right one."""
        seen = torch.stack([one for one, _ in found])
        scores = self.kind.compare(model, seen, self.names, self.templates)
        return list(zip(scores, (label for _, label in found), strict=True))

    def figures(self, found: Sequence[tuple[Tensor, int]]) -> dict[str, float]:
        """Accuracies; that of the first class with an interval."""
        rows = top_rows(torch.stack([scores for scores, _ in found]), [label for _, label in found])
        return with_interval(rows, top_figures, "top1")
