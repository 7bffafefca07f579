"""Models that lay pictures and texts into one space: CLIP, SigLIP and their like, any two encoders that transformers ties together, and BLIP for retrieval, which can also read a text
again while it looks at a picture.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES as MATCHING

from prunus.batches import for_model, naming_batch
from prunus.calibration import Batch
from prunus.errors import PrunusError
from prunus.losses import Prediction
from prunus.tasks.kinds.classifier import Labeller
from prunus.tasks.kinds.kind import architecture
from prunus.tasks.kinds.parts import Parted, pixels

PLAIN = "a photo of a {}."
"""What a class is called in a sentence, if nothing else is said."""


class DualEncoder(Parted, Labeller):
    """Base of the kinds that compare pictures with texts."""

    takes: ClassVar = (
        "CLIP, SigLIP and their like, two encoders as a VisionTextDualEncoderModel, and BLIP for retrieval"
    )

    rereads = False
    """Whether pairs can be looked at again, more closely."""

    def batch(
        self,
        images: Sequence[Image],
        texts: Sequence[str],
        numbers: Sequence[int],
        sized: bool = False,
        length: int | None = None,
    ) -> Batch:
        """Pairs, as the model takes them.

        Args:
            numbers: of the pictures; pairs of one picture belong together, as models with a queue are told.
            sized: whether the pictures have the model's size already.
            length: as of `tokens`.
        """
        pairs = {**self.tokens(texts, length), "pixel_values": pixels(self.pictures, images, sized)}
        return pairs | {"labels": torch.tensor(numbers)} if hasattr(self.config, "queue_size") else pairs

    def check_classes(self, names: Sequence[str] | None, templates: Sequence[str]) -> None:
        if not names:
            raise PrunusError("task.classes", None, "the model knows classes by their names; give one for each number")
        if any("{}" not in template for template in templates):
            raise PrunusError(
                "task.templates", templates[0], "{} stands where the name of a class belongs; write it in each"
            )

    def labelled(
        self,
        images: Sequence[Image],
        labels: Sequence[int],
        names: Sequence[str] | None,
        templates: Sequence[str],
        sized: bool = False,
    ) -> Batch:
        texts = [(templates or (PLAIN,))[0].format((names or ())[label]) for label in labels]
        return self.batch(images, texts, labels, sized)

    def look(self, model: Any, images: Sequence[Image]) -> Tensor:
        return self.embed_images(model, images)[0]

    def compare(self, model: Any, seen: Tensor, names: Sequence[str] | None, templates: Sequence[str]) -> Tensor:
        """Cosines with the classes, each the mean of what its sentences are embedded as (Radford et al. 2021)."""
        features = []
        for name in names or ():
            sentences = [template.format(name) for template in templates or (PLAIN,)]
            features.append(F.normalize(self.embed_texts(model, sentences).mean(0), dim=0))
        return seen @ torch.stack(features).T

    @abstractmethod
    def embed_images(self, model: Any, images: Sequence[Image]) -> tuple[Tensor, Tensor | None]:
        """Features of length one, (B, E), and what `match` looks at again, where there is such a thing; all fp32, on the CPU."""

    @abstractmethod
    def embed_texts(self, model: Any, texts: Sequence[str], length: int | None = None) -> Tensor:
        """Features of length one, (B, E), fp32, on the CPU."""

    def match(self, model: Any, states: Tensor, tokens: Batch) -> Tensor:
        """How well pairs fit, (B,), fp32, on the CPU; for kinds that reread.

        Args:
            states: of the pictures, from `embed_images`, (B, P, D).
            tokens: of the texts, from `tokens`.
        """
        raise NotImplementedError

    def look_again(
        self, model: Any, similar: Tensor, states: Sequence[Tensor], texts: Sequence[str], most: int, length: int | None, size: int
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Similarity and fit of every query with its most similar candidates, −∞ with others: (pictures, texts) and (texts, pictures).

        Args:
            similar: (pictures, texts).
            states: of the pictures, from `embed_images`, (P, D) each.
            most: candidates of a query.
            length: tokens of a text at the most.
            size: pairs that are looked at together.
        """
        of_images, of_texts = (torch.full_like(one, -torch.inf) for one in (similar, similar.T))
        for again, one, by_image in ((of_images, similar, True), (of_texts, similar.T, False)):
            for query, row in enumerate(one):
                best = row.topk(min(most, len(row)))
                places = best.indices.tolist()
                pairs = [(states[query], texts[at]) if by_image else (states[at], texts[query]) for at in places]
                fits = [
                    self.match(model, torch.stack([state for state, _ in part]), self.tokens([text for _, text in part], length))
                    for part in (pairs[start : start + size] for start in range(0, len(pairs), size))
                ]  # fmt: skip
                again[query, places] = best.values + torch.cat(fits)
        return of_images, of_texts


class Towers(DualEncoder):
    """CLIP, SigLIP and other models of transformers with `get_image_features` and `get_text_features`."""

    @classmethod
    def fits(cls, config: Any) -> bool:
        name = architecture(config)
        return name in ("CLIPForRetrieval", "VisionTextDualEncoderModel") or (
            name.endswith("Model") and name in MATCHING.values()
        )

    @torch.no_grad()
    def embed_images(self, model: Any, images: Sequence[Image]) -> tuple[Tensor, Tensor | None]:
        return _unit(
            model.get_image_features(**for_model({"pixel_values": pixels(self.pictures, images)}, model))
        ), None

    @torch.no_grad()
    def embed_texts(self, model: Any, texts: Sequence[str], length: int | None = None) -> Tensor:
        return _unit(model.get_text_features(**for_model(self.tokens(texts, length), model)))


class BlipMatching(DualEncoder):
    """BLIP for retrieval: features of two encoders, and the text encoder that attends to the picture (ITM)."""

    rereads = True

    def check_loss(self) -> None:
        if architecture(self.config) == "BlipForImageTextRetrieval":
            raise _lossless("BlipForImageTextRetrieval")

    def predict(self, model: nn.Module, batch: Batch) -> Prediction:
        """The loss of the model, and behind it the similarities of all pairs of the batch, as of a CLIP."""
        blip: Any = model
        with naming_batch():
            found = blip(**for_model(dict(batch), model))
        if getattr(found, "loss", None) is None:
            raise _lossless(type(model).__name__)
        similar = found.image_embeds @ found.text_embeds.T / blip.temp
        pairs = torch.cat([similar, similar.T])
        return Prediction(found.loss.float(), pairs, torch.ones_like(pairs[:, 0], dtype=torch.bool))

    @classmethod
    def fits(cls, config: Any) -> bool:
        return architecture(config) in ("BlipForImageTextRetrieval", "BlipForRetrievalTraining")

    @torch.no_grad()
    def embed_images(self, model: Any, images: Sequence[Image]) -> tuple[Tensor, Tensor | None]:
        inputs = for_model({"pixel_values": pixels(self.pictures, images)}, model)
        states = model.vision_model(**inputs).last_hidden_state
        return _unit(model.vision_proj(states[:, 0])), states.float().cpu()

    @torch.no_grad()
    def embed_texts(self, model: Any, texts: Sequence[str], length: int | None = None) -> Tensor:
        tokens = for_model(_read(self.tokens(texts, length)), model)
        return _unit(model.text_proj(model.text_encoder(**tokens).last_hidden_state[:, 0]))

    @torch.no_grad()
    def match(self, model: Any, states: Tensor, tokens: Batch) -> Tensor:
        asked = for_model(_read(tokens) | {"encoder_hidden_states": states}, model)
        if hasattr(self.config, "enc_token_id"):  # the stock model reads the texts as they are
            asked["input_ids"] = asked["input_ids"].clone()
            asked["input_ids"][:, 0] = self.config.enc_token_id
        read = model.text_encoder(**asked).last_hidden_state
        return model.itm_head(read[:, 0])[:, 1].float().cpu()  # type: ignore[no-any-return]


def _lossless(model: str) -> PrunusError:
    return PrunusError(
        "loss", model, "such a model has none; load it as a BlipForRetrievalTraining, whose config is a BlipRetrievalConfig"
    )  # fmt: skip


def _read(tokens: Batch) -> Batch:
    """What BLIP's text encoder takes of a tokenizer's answer."""
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def _unit(features: Any) -> Tensor:
    """Of length one, fp32, on the CPU."""
    values: Tensor = getattr(features, "pooler_output", features)
    return F.normalize(values.float(), dim=-1).cpu()


def blip_words(caption: str, most: int = 30) -> str:
    """A caption as BLIP's authors clean it.

    Examples:
        >>> blip_words("A dog, (brown) runs -- fast!  ")
        'a dog, brown runs -- fast'
    """
    plain = re.sub(r"[.!\"()*#:;~]", " ", caption.lower())
    return " ".join(re.sub(r"\s{2,}", " ", plain).rstrip("\n").strip(" ").split(" ")[:most])
