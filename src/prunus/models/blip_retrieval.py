"""BLIP for retrieval, with what it trains with: momentum copies of its encoders, and queues of what they said of earlier batches.

The loss is that of contrast between images and texts (ITC), whose targets are partly the momentum copies' own, and that of matching
(ITM), with one hard negative for every image and every text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, BlipConfig, BlipForImageTextRetrieval, BlipTextModel, BlipVisionModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from prunus.models.momentum import (
    NOBODY,
    FeatureQueue,
    WithCopies,
    contrast,
    everywhere,
    first_of_own,
    padded_alike,
)

# B: batch, T: tokens of the text, P: tokens of an image, E: width of the features

LOWEST, HIGHEST = 0.001, 0.5
"""Bounds of the temperature."""


class BlipRetrievalConfig(BlipConfig):  # type: ignore[misc]
    """As `BlipConfig`, and how it is trained."""

    model_type = "blip_retrieval"

    enc_token_id: int = 30523
    """The token [ENC], which takes the place of the first one where a text is matched with an image."""
    queue_size: int = 57600
    """Pairs that a batch is contrasted with."""
    momentum: float = 0.995
    """Of the copies, at every training step."""
    soft_target_weight: float = 0.4
    """Weight of the copies' similarities among the targets."""
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

    In training mode every forward pass with a loss moves the copies and fills the queue, and negatives are drawn; in evaluation mode
    nothing changes, and negatives are the most similar. `from_pretrained` also reads a `BlipForImageTextRetrieval`; then
    `copy_momentum` gives it its copies.

    Examples:
        >>> model(input_ids=ids, attention_mask=mask, pixel_values=pixels, labels=image_numbers).loss.shape
        torch.Size([])
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

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        use_itm_head: bool | None = True,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        labels: Tensor | None = None,
        return_loss: bool | None = None,
        soft_target_weight: float | Tensor | None = None,
        **more: object,
    ) -> ModelOutput:
        """
        Args:
            input_ids: (B, T), beginning with [CLS].
            pixel_values: (B, 3, height, width).
            use_itm_head: without a loss: scores of matching, else similarities of features.
            attention_mask: (B, T), zero at padding.
            labels: the number of each pair's image, int64 (B,), not negative: pairs with one image are all positive. None: all images
                are different.
            return_loss: whether to train; by default where there are labels.
            soft_target_weight: if none is given, that of the config, times `soft_target_share`.

        Returns:
            With a loss a `BlipRetrievalOutput`, else as of `BlipForImageTextRetrieval`.
        """
        matched = input_ids.clone()
        matched[:, 0] = self.config.enc_token_id
        if not (labels is not None if return_loss is None else return_loss):
            return super().forward(
                matched if use_itm_head else input_ids, pixel_values, use_itm_head=use_itm_head,
                attention_mask=attention_mask, interpolate_pos_encoding=interpolate_pos_encoding, **more,
            )  # fmt: skip
        if self.training:
            with torch.no_grad():
                self.temp.clamp_(LOWEST, HIGHEST)
            self.follow(self.config.momentum)
        pixels = {"pixel_values": pixel_values, "interpolate_pos_encoding": interpolate_pos_encoding}
        words = {"input_ids": input_ids, "attention_mask": attention_mask}
        states = self.vision_model(**pixels).last_hidden_state
        image = F.normalize(self.vision_proj(states[:, 0]), dim=-1)
        text = F.normalize(self.text_proj(self.text_encoder(**words).last_hidden_state[:, 0]), dim=-1)
        with torch.no_grad():
            states_m, read_m = self.vision_model_m(**pixels), self.text_encoder_m(**words)
            image_m = F.normalize(self.vision_proj_m(states_m.last_hidden_state[:, 0]), dim=-1)
            text_m = F.normalize(self.text_proj_m(read_m.last_hidden_state[:, 0]), dim=-1)
        weight = self.soft_weight(soft_target_weight)
        itc_loss = contrast((image, text), (image_m, text_m), self.queue, 1 / self.temp, weight, labels)
        itm_loss = self._match(states, matched, attention_mask, image.detach(), text.detach(), labels)
        if self.training:
            self.queue.push(image_m, text_m, labels)
        return BlipRetrievalOutput(itc_loss + itm_loss, itc_loss, itm_loss, image, text)

    def draw(self, weights: Tensor) -> Tensor:
        """One place for each row of weights, (rows,): drawn in training, the heaviest in evaluation."""
        return weights.multinomial(1)[:, 0] if self.training else weights.argmax(1)

    def _match(
        self, states: Tensor, ids: Tensor, mask: Tensor | None, image: Tensor, text: Tensor, labels: Tensor | None
    ) -> Tensor:
        """The loss of matching, ITM: pairs, texts with other images, images with other texts, in training those of all processes.
        Where all pairs are positive, there are no others.

        Args:
            states: of the images, (B, P, width of the ViT).
            ids, mask: of the texts, (B, T).
            image, text: features, (B, E).
            labels: the numbers of the images, (B,).
        """
        gathered: Callable[[Tensor], Tensor] = everywhere if self.training else _alone
        if self.training:
            ids, mask = padded_alike(ids, mask, self.config.text_config.pad_token_id or 0)
        all_states, all_ids, all_masks = gathered(states), gathered(ids), None if mask is None else gathered(mask)
        pairs = torch.arange(len(ids), device=ids.device)
        own_places = pairs + (first_of_own(len(pairs)) if self.training else 0)
        positive = own_places[:, None] == torch.arange(len(all_ids), device=ids.device)
        if labels is not None:
            positive = positive | (labels[:, None] == gathered(labels)) & (labels[:, None] != NOBODY)
        contested = pairs[~positive.all(1)]
        with torch.no_grad():
            of_texts, of_images = (
                (own @ gathered(others).T / self.temp)
                .softmax(1)
                .clamp_min(torch.finfo(own.dtype).tiny)
                .masked_fill(positive, 0)[contested]
                for own, others in ((text, image), (image, text))
            )
            other_images, other_texts = self.draw(of_texts), self.draw(of_images)
        read = self.text_encoder(
            input_ids=torch.cat([ids, ids[contested], all_ids[other_texts]]),
            attention_mask=None
            if mask is None or all_masks is None
            else torch.cat([mask, mask[contested], all_masks[other_texts]]),
            encoder_hidden_states=torch.cat([states, all_states[other_images], states[contested]]),
        ).last_hidden_state
        targets = (torch.arange(len(read), device=ids.device) < len(pairs)).long()
        return F.cross_entropy(self.itm_head(read[:, 0]), targets)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(self.temp, self.config.temperature)
        elif isinstance(module, FeatureQueue):
            module.begin()


def _alone(part: Tensor) -> Tensor:
    return part


AutoConfig.register(BlipRetrievalConfig.model_type, BlipRetrievalConfig)
AutoModel.register(BlipRetrievalConfig, BlipForRetrievalTraining)
