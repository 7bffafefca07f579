"""BLIP for retrieval, with what it trains with: momentum copies of its encoders, and queues of what they said of earlier batches.

The loss is that of contrast between images and texts (ITC), whose targets are partly the momentum copies' own, and that of matching
(ITM), with one hard negative for every image and every text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, BlipConfig, BlipForImageTextRetrieval, BlipTextModel, BlipVisionModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from prunus.errors import PrunusError
from prunus.models.momentum import FeatureQueue, WithCopies, contrast

# B: batch, T: tokens of the text, P: tokens of an image, E: width of the features


class BlipRetrievalConfig(BlipConfig):  # type: ignore[misc]
    """As `BlipConfig`."""

    model_type = "blip_retrieval"

    enc_token_id: int = 30523
    """The token [ENC], which takes the place of the first one where a text is matched with an image."""
    queue_size: int = 57600
    """Features of earlier batches that a batch is contrasted with, of images and of texts."""
    momentum: float = 0.995
    """Share of its old weights that a momentum copy keeps at each step."""
    soft_target_weight: float = 0.4
    """Weight of the momentum copies' similarities among the targets."""
    temperature: float = 0.07
    """Of the similarities, at first."""


@dataclass
class BlipRetrievalOutput(ModelOutput):  # type: ignore[misc]
    """What a training batch gives."""

    loss: Tensor | None = None
    """Sum of both."""
    itc_loss: Tensor | None = None
    itm_loss: Tensor | None = None
    image_embeds: Tensor | None = None
    """Features of the images, of length one, (B, E)."""
    text_embeds: Tensor | None = None
    """Features of the texts, of length one, (B, E)."""


class BlipForRetrievalTraining(WithCopies, BlipForImageTextRetrieval):  # type: ignore[misc]
    """transformers' `BlipForImageTextRetrieval`, which also trains.

    With `labels` it returns a loss. In training mode each call moves the momentum copies and the queues one step on, and negatives are
    drawn; in evaluation mode nothing changes, and negatives are the most similar.

    A checkpoint that has no copies gets them by `copy_momentum`, which is also how training begins after a search.

    Example:
        >>> model(input_ids=ids, attention_mask=mask, pixel_values=pixels, labels=image_numbers).loss  # doctest: +SKIP
    """

    config_class = BlipRetrievalConfig
    prunus_mirrors: ClassVar[dict[str, str]] = {
        "vision_model_m": "vision_model", "text_encoder_m": "text_encoder", "vision_proj_m": "vision_proj", "text_proj_m": "text_proj",
    }  # fmt: skip
    """Path of a momentum copy → that of its original."""

    def __init__(self, config: BlipRetrievalConfig):
        super(BlipForImageTextRetrieval, self).__init__(
            config
        )  # not its parent's, which would be finished without the copies
        width, seen, read = (
            config.image_text_hidden_size,
            config.vision_config.hidden_size,
            config.text_config.hidden_size,
        )
        for suffix in ("", "_m"):
            setattr(self, f"vision_model{suffix}", BlipVisionModel(config.vision_config))
            setattr(self, f"text_encoder{suffix}", BlipTextModel(config.text_config, add_pooling_layer=False))
            setattr(self, f"vision_proj{suffix}", nn.Linear(seen, width))
            setattr(self, f"text_proj{suffix}", nn.Linear(read, width))
        self.itm_head = nn.Linear(read, 2)
        self.temp = nn.Parameter(torch.tensor(config.temperature))
        self.queue = FeatureQueue(width, config.queue_size)
        self.post_init()
        self.train().copy_momentum()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(self.temp, self.config.temperature)
        elif isinstance(module, FeatureQueue):
            module.begin()

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        use_itm_head: bool | None = True,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        labels: Tensor | None = None,
        soft_target_weight: float | None = None,
        **more: object,
    ) -> ModelOutput:
        """
        Args:
            input_ids: (B, T), beginning with [CLS].
            pixel_values: (B, 3, height, width).
            use_itm_head: without labels: scores of matching, else similarities of features.
            attention_mask: (B, T), zero at padding.
            labels: the number of each pair's image, int64 (B,), not negative. Texts of one image are no negatives of each other.
            soft_target_weight: that of the config if none is given; it is raised from zero during the first epochs.

        Raises:
            PrunusError: with labels, an image of which there is no other in the batch.
        """
        matched = input_ids.clone()
        matched[:, 0] = self.config.enc_token_id
        if labels is None:
            return super().forward(
                matched if use_itm_head else input_ids, pixel_values, use_itm_head=use_itm_head,
                attention_mask=attention_mask, interpolate_pos_encoding=interpolate_pos_encoding, **more,
            )  # fmt: skip
        same = labels[:, None] == labels
        if bool(same.all(1).any()):
            raise PrunusError("labels", labels.tolist(), "they are of one image; a batch needs pairs of at least two")
        weight = self.config.soft_target_weight if soft_target_weight is None else soft_target_weight
        if self.training:
            self.follow(self.config.momentum)
            self.temp.data.clamp_(0.001, 0.5)
        pixels = {"pixel_values": pixel_values, "interpolate_pos_encoding": interpolate_pos_encoding}
        words = {"input_ids": input_ids, "attention_mask": attention_mask}
        states = self.vision_model(**pixels).last_hidden_state
        image = F.normalize(self.vision_proj(states[:, 0]), dim=-1)
        text = F.normalize(self.text_proj(self.text_encoder(**words).last_hidden_state[:, 0]), dim=-1)
        with torch.no_grad():
            states_m, read_m = self.vision_model_m(**pixels), self.text_encoder_m(**words)
            image_m = F.normalize(self.vision_proj_m(states_m.last_hidden_state[:, 0]), dim=-1)
            text_m = F.normalize(self.text_proj_m(read_m.last_hidden_state[:, 0]), dim=-1)
        itc_loss = contrast((image, text), (image_m, text_m), self.queue, 1 / self.temp, weight, labels)
        itm_loss = self._match(states, matched, attention_mask, *self._negatives(image, text, same))
        if self.training:
            self.queue.push(image_m, text_m, labels)
        return BlipRetrievalOutput(itc_loss + itm_loss, itc_loss, itm_loss, image, text)

    @torch.no_grad()
    def _negatives(self, image: Tensor, text: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
        """(place of an image that is another than each text's, of a text that is another than each image's), (B,) each."""
        similar = image @ text.T / self.temp
        of_texts, of_images = ((s.softmax(1).masked_fill(same, 0)) for s in (similar.T, similar))
        return self.draw(of_texts), self.draw(of_images)

    def draw(self, weights: Tensor) -> Tensor:
        """One place for each row of weights: drawn in training, the heaviest in evaluation."""
        return weights.multinomial(1)[:, 0] if self.training else weights.argmax(1)

    def _match(
        self, states: Tensor, ids: Tensor, mask: Tensor | None, negative_images: Tensor, negative_texts: Tensor
    ) -> Tensor:
        """ITM: pairs, texts with other images, images with other texts."""
        own = torch.arange(len(ids), device=ids.device)
        images, texts = torch.cat([own, negative_images, own]), torch.cat([own, own, negative_texts])
        read = self.text_encoder(
            input_ids=ids[texts],
            attention_mask=None if mask is None else mask[texts],
            encoder_hidden_states=states[images],
        ).last_hidden_state
        targets = (torch.arange(len(texts), device=ids.device) < len(ids)).long()
        return F.cross_entropy(self.itm_head(read[:, 0]), targets)


AutoConfig.register(BlipRetrievalConfig.model_type, BlipRetrievalConfig)
AutoModel.register(BlipRetrievalConfig, BlipForRetrievalTraining)
