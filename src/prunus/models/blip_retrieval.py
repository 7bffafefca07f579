"""BLIP for retrieval, with what it trains with: momentum copies of its encoders, and queues of what they said of earlier batches.

The loss is that of contrast between images and texts (ITC), whose targets are partly the momentum copies' own, and that of matching
(ITM), with one hard negative for every image and every text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, BlipConfig, BlipForImageTextRetrieval, BlipTextModel, BlipVisionModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from prunus.errors import PrunusError

# B: batch, T: tokens of the text, P: tokens of an image, E: width of the features

COPIES = {"vision_model": "vision_model_m", "text_encoder": "text_encoder_m", "vision_proj": "vision_proj_m", "text_proj": "text_proj_m"}  # fmt: skip
"""Module → its momentum copy."""
NOBODY = -100
"""Number of no image: a place of the queue that was never filled."""


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


class BlipForRetrievalTraining(BlipForImageTextRetrieval):  # type: ignore[misc]
    """transformers' `BlipForImageTextRetrieval`, which also trains.

    With `labels` it returns a loss. In training mode each call moves the momentum copies and the queues one step on, and negatives are
    drawn; in evaluation mode nothing changes, and negatives are the most similar.

    A checkpoint that has no copies gets them by `copy_momentum`, which is also how training begins after a search.

    Example:
        >>> model(input_ids=ids, attention_mask=mask, pixel_values=pixels, labels=image_numbers).loss  # doctest: +SKIP
    """

    config_class = BlipRetrievalConfig
    prunus_mirrors: ClassVar[dict[str, str]] = {copy: original for original, copy in COPIES.items()}

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
        self.image_queue = nn.Buffer(F.normalize(torch.randn(width, config.queue_size), dim=0))
        self.text_queue = nn.Buffer(F.normalize(torch.randn(width, config.queue_size), dim=0))
        self.idx_queue = nn.Buffer(torch.full((1, config.queue_size), NOBODY))
        self.ptr_queue = nn.Buffer(torch.zeros(1, dtype=torch.long))
        self.post_init()
        self.train().copy_momentum()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(self.temp, self.config.temperature)
            for queue in (self.image_queue, self.text_queue):
                init.copy_(queue, F.normalize(torch.randn_like(queue), dim=0))
            init.constant_(self.idx_queue, NOBODY)
            init.zeros_(self.ptr_queue)

    @torch.no_grad()
    def copy_momentum(self) -> None:
        """Makes the momentum copies equal to their originals."""
        self._move_copies(0.0)

    def train(self, mode: bool = True) -> Self:
        """As of any module. Momentum copies have no gradients, which a loaded model does not know before."""
        for copy in COPIES.values():
            self.get_submodule(copy).requires_grad_(False)
        return super().train(mode)  # type: ignore[no-any-return]

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
            self._move_copies(self.config.momentum)
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
        itc_loss = self._contrast(image, text, image_m, text_m, labels, weight)
        itm_loss = self._match(states, matched, attention_mask, *self._negatives(image, text, same))
        if self.training:
            self._remember(image_m, text_m, labels)
        return BlipRetrievalOutput(itc_loss + itm_loss, itc_loss, itm_loss, image, text)

    def _contrast(
        self, image: Tensor, text: Tensor, image_m: Tensor, text_m: Tensor, labels: Tensor, weight: float
    ) -> Tensor:
        """ITC: images to all texts, and texts to all images, of the momentum copies' features of this batch and the queued ones."""
        all_images = torch.cat([image_m.T, self.image_queue.clone()], 1)
        all_texts = torch.cat([text_m.T, self.text_queue.clone()], 1)
        related = (labels[:, None] == torch.cat([labels, self.idx_queue[0]])).float()
        hard = related / related.sum(1, keepdim=True)
        losses = []
        for online, copied, others in ((image, image_m, all_texts), (text, text_m, all_images)):
            with torch.no_grad():
                targets = weight * (copied @ others / self.temp).softmax(1) + (1 - weight) * hard
            losses.append(F.cross_entropy(online @ others / self.temp, targets))
        return (losses[0] + losses[1]) / 2

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

    @torch.no_grad()
    def _move_copies(self, momentum: float) -> None:
        for original, copy in COPIES.items():
            pairs = zip(self.get_submodule(original).parameters(), self.get_submodule(copy).parameters(), strict=True)
            for online, averaged in pairs:
                averaged.data.mul_(momentum).add_(online.data, alpha=1 - momentum)

    @torch.no_grad()
    def _remember(self, image_m: Tensor, text_m: Tensor, labels: Tensor) -> None:
        """Puts a batch, of all processes, in the place of the oldest features."""
        image_m, text_m, labels = (
            _of_all_processes(tensor)[-self.config.queue_size :] for tensor in (image_m, text_m, labels)
        )
        places = (self.ptr_queue + torch.arange(len(labels), device=labels.device)) % self.config.queue_size
        self.image_queue[:, places] = image_m.T.to(self.image_queue.dtype)
        self.text_queue[:, places] = text_m.T.to(self.text_queue.dtype)
        self.idx_queue[0, places] = labels
        self.ptr_queue.add_(len(labels)).remainder_(self.config.queue_size)


def _of_all_processes(tensor: Tensor) -> Tensor:
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return tensor
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor.contiguous())
    return torch.cat(gathered)


AutoConfig.register(BlipRetrievalConfig.model_type, BlipRetrievalConfig)
AutoModel.register(BlipRetrievalConfig, BlipForRetrievalTraining)
