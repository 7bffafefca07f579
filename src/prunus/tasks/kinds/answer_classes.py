"""Models that take a question and an image and choose among the answers they know, as ViLT does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from prunus.batches import for_model, naming_batch
from prunus.calibration import Batch
from prunus.losses import Prediction
from prunus.metrics import normalised
from prunus.tasks.kinds.kind import Speaker, architecture
from prunus.tasks.kinds.parts import wide_enough

PEOPLE = 0.3
"""What every person who gives an answer adds to its label, up to one (Kim et al. 2021)."""


class AnswerClasses(Speaker):
    """A classifier whose classes are answers. It says the likeliest, and can learn of an image's answers those it knows."""

    @classmethod
    def fits(cls, config: Any) -> bool:
        return architecture(config) == "ViltForQuestionAnswering"

    @cached_property
    def places(self) -> dict[str, int]:
        """Numbers of the answers, as they are normalised."""
        return {normalised(str(name)): int(place) for place, name in self.config.id2label.items()}

    def batch(
        self, images: Sequence[Sequence[Image]], prompts: Sequence[str], targets: Sequence[Sequence[str]] | None = None
    ) -> Batch:
        """Labels are (rows, classes): how far each answer is right."""
        given = wide_enough(self.processor.image_processor, [image for (image,) in images])
        words = {"padding": True, "truncation": True, "max_length": self.config.max_position_embeddings}
        batch: Batch = dict(self.processor(images=given, text=list(prompts), return_tensors="pt", **words))
        if targets is not None:
            labels = torch.zeros(len(prompts), self.config.num_labels)
            for row, right in enumerate(targets):
                for answer, people in Counter(map(normalised, right)).items():
                    if answer in self.places:
                        labels[row, self.places[answer]] = 1.0 if len(right) == 1 else min(1.0, PEOPLE * people)
            batch["labels"] = labels
        return batch

    def predict(self, model: nn.Module, batch: Batch) -> Prediction:
        with naming_batch():
            said = model(**for_model(batch, model))
        return Prediction(
            said.loss.float(), said.logits, torch.ones(len(said.logits), dtype=torch.bool, device=said.logits.device)
        )

    @torch.no_grad()
    def generate(
        self,
        model: Any,
        images: Sequence[Sequence[Image]],
        prompts: Sequence[str],
        new_tokens: int,
        beams: int = 1,
        **how: Any,
    ) -> list[str]:
        logits = model(**for_model(self.batch(images, prompts), model)).logits
        return [str(self.config.id2label[place]) for place in logits.argmax(1).tolist()]

    @torch.no_grad()
    def score(
        self,
        model: Any,
        images: Sequence[Sequence[Image]],
        prompts: Sequence[str],
        candidates: Sequence[str],
        best: int,
    ) -> Tensor:
        """Of candidates that are no class it is -inf."""
        likely: Tensor = model(**for_model(self.batch(images, prompts), model)).logits.float().log_softmax(1).cpu()
        places = [self.places.get(normalised(text), likely.shape[1]) for text in candidates]
        return torch.cat([likely, torch.full((len(likely), 1), -torch.inf)], 1)[:, places]
