"""Models that say the class of a picture: ViT, DeiT, DINOv2, EVA and whatever else has logits of labels."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.batches import for_model
from prunus.calibration import Batch
from prunus.errors import PrunusError, shown
from prunus.losses import Prediction
from prunus.tasks.kinds.kind import Kind, architecture
from prunus.tasks.kinds.parts import image_processor, pixels


class Labeller(Kind):
    """Base of the kinds that tell which of some classes a picture shows."""

    takes: ClassVar = "classifiers (…ForImageClassification), CLIP, SigLIP and their like"

    by_names = True
    """Whether the data's classes are found by their names, where a model has names of its own."""

    def check_classes(self, names: Sequence[str] | None, templates: Sequence[str]) -> None:
        """Refuses what the model cannot tell apart.

        Args:
            names: of the data's classes; None if they have only numbers.
            templates: what a class is called in a sentence, with `{}` for its name; none if the task does not say.

        Raises:
            PrunusError: see above.
        """

    @abstractmethod
    def labelled(
        self,
        images: Sequence[Image],
        labels: Sequence[int],
        names: Sequence[str] | None,
        templates: Sequence[str],
        sized: bool = False,
    ) -> Batch:
        """Inputs of the model for training, with what it learns from.

        Args:
            labels: of the pictures, as the data number them.
            sized: whether the pictures have the model's size already.
        """

    @abstractmethod
    def look(self, model: Any, images: Sequence[Image]) -> Tensor:
        """What a model makes of pictures, (B, E), fp32, on the CPU."""

    @abstractmethod
    def compare(self, model: Any, seen: Tensor, names: Sequence[str] | None, templates: Sequence[str]) -> Tensor:
        """Scores of the data's classes, (B, classes), of what `look` gave."""


class Looker(Kind):
    """Base of the kinds that take pictures alone."""

    @cached_property
    def processor(self) -> Any:
        return image_processor([self.source, self.folder], self.config)

    def save(self, folder: Path) -> None:
        self.processor.save_pretrained(folder)


class Classifier(Looker, Labeller):
    """A picture → logits of classes."""

    smoothing = 0.0
    """Share of a target that is spread over all classes."""

    @classmethod
    def fits(cls, config: Any) -> bool:
        return "ForImageClassification" in architecture(config)

    def places(self, names: Sequence[str] | None) -> list[int] | None:
        """The model's number of each class of the data; None where numbers are all there is, or all that counts.

        Raises:
            PrunusError: the model has names, and not those.
        """
        if not names or not self.by_names or not self.known:
            return None
        strange = next((name for name in names if _plain(name) not in self.known), None)
        if strange is not None:
            raise PrunusError(
                "task.classes", strange, f"the model calls no class so, or several; it has {shown([str(n) for n in self.config.id2label.values()])}. "
                "Name the classes as it does, in the order of the data; or set match: numbers if both number them alike, or it is to learn them anew",
            )  # fmt: skip
        return [self.known[_plain(name)] for name in names]

    @cached_property
    def known(self) -> dict[str, int]:
        """Numbers of the model's classes by their names, of which the first of several will do; none if it has only numbers."""
        numbers: dict[str, list[int]] = {}
        for number, name in self.config.id2label.items():
            for said in {_plain(str(name)), _plain(str(name).partition(",")[0])}:
                numbers.setdefault(said, []).append(int(number))
        if all(re.fullmatch(r"label \d+", said) for said in numbers):
            return {}
        return {said: alike[0] for said, alike in numbers.items() if len(alike) == 1}

    def check_classes(self, names: Sequence[str] | None, templates: Sequence[str]) -> None:
        if templates:
            raise PrunusError(
                "task.templates", templates[0], "the model knows its classes by numbers; leave the templates out"
            )
        if names and len(names) > self.config.num_labels:
            raise PrunusError(
                "task.train", len(names), f"there are so many classes, and the model knows {self.config.num_labels}"
            )
        self.places(names)

    def labelled(
        self,
        images: Sequence[Image],
        labels: Sequence[int],
        names: Sequence[str] | None,
        templates: Sequence[str],
        sized: bool = False,
    ) -> Batch:
        places = self.places(names)
        known = [label if places is None else places[label] for label in labels]
        if max(known) >= self.config.num_labels:
            raise PrunusError("label", max(known), f"the model knows {self.config.num_labels} classes, from 0")
        return {"pixel_values": pixels(self.processor, images, sized), "labels": torch.tensor(known)}

    def predict(self, model: nn.Module, batch: Batch) -> Prediction:
        """The cross-entropy, of classes or of shares of them."""
        inputs = for_model(dict(batch), model)
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing)
        return Prediction(loss, logits, torch.ones(len(logits), dtype=torch.bool, device=logits.device))

    @torch.no_grad()
    def look(self, model: Any, images: Sequence[Image]) -> Tensor:
        found: Tensor = model(**for_model({"pixel_values": pixels(self.processor, images)}, model)).logits
        return found.float().cpu()

    def compare(self, model: Any, seen: Tensor, names: Sequence[str] | None, templates: Sequence[str]) -> Tensor:
        places = self.places(names)
        return seen if places is None else seen[:, places]


def _plain(name: str) -> str:
    """A name in small letters, with single spaces."""
    return " ".join(name.replace("_", " ").casefold().split())
