"""CLIP trained for retrieval with momentum distillation, as UPop's authors train it."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPVisionModel,
)
from transformers.models.clip.modeling_clip import CLIPOutput
from transformers.utils.generic import can_return_tuple

from prunus.models.momentum import FeatureQueue, WithCopies, contrast

LARGEST_SCALE = 4.6052
"""Of the logarithm of the scale: a factor of 100."""


class CLIPRetrievalConfig(CLIPConfig):  # type: ignore[misc]
    """That of a CLIP, and how it is trained.

    Examples:
        >>> CLIPRetrievalConfig(queue_size=256).momentum
        0.995
    """

    model_type = "clip_retrieval"

    queue_size: int = 57600
    """Pairs that a batch is contrasted with."""
    momentum: float = 0.995
    """Of the copies, at every training step."""
    soft_target_weight: float = 0.4
    """Weight of the copies' similarities among the targets."""


class CLIPForRetrieval(WithCopies, CLIPModel):  # type: ignore[misc]
    """A CLIP with momentum copies of both towers and a queue of features.

    In training mode every forward pass with a loss moves the copies and fills the queue. As in the published code, the queue holds
    features of the model itself, and the copy of the text tower has no last norm of its own. Everything but the copies and the queue
    has the names of a `CLIPModel`, whose `from_pretrained` reads the folders, too.

    Examples:
        >>> model = CLIPForRetrieval.around(clip, queue_size=4096)
        >>> model(input_ids=ids, pixel_values=pixels, labels=image_numbers).loss.shape
        torch.Size([])
    """

    config_class = CLIPRetrievalConfig
    prunus_mirrors: ClassVar[dict[str, str]] = {
        "vision_model_m": "vision_model", "visual_projection_m": "visual_projection", "text_model_m.embeddings": "text_model.embeddings",
        "text_model_m.encoder": "text_model.encoder", "text_projection_m": "text_projection",
    }  # fmt: skip
    """Path of a momentum copy → that of its original."""

    def __init__(self, config: CLIPRetrievalConfig) -> None:
        super().__init__(config)
        self.vision_model_m = CLIPVisionModel._from_config(config.vision_config)
        self.text_model_m = CLIPTextModel._from_config(config.text_config)
        self.text_model_m.final_layer_norm = nn.Identity()
        self.visual_projection_m = nn.Linear(self.vision_embed_dim, self.projection_dim, bias=False)
        self.text_projection_m = nn.Linear(self.text_embed_dim, self.projection_dim, bias=False)
        self.queue = FeatureQueue(self.projection_dim, config.queue_size)
        self.post_init()
        self.train().copy_momentum()

    @classmethod
    def around(cls, clip: CLIPModel, **settings: Any) -> Self:
        """One with the weights of a CLIP, which are copied.

        Args:
            settings: of the config.
        """
        model = cls(
            CLIPRetrievalConfig(**clip.config.to_dict() | {"model_type": cls.config_class.model_type} | settings)
        )
        model.load_state_dict(clip.state_dict(), strict=False)
        model.copy_momentum()
        return model

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        labels: Tensor | None = None,
        return_loss: bool | None = None,
        soft_target_weight: float | Tensor | None = None,
        **kwargs: Any,
    ) -> CLIPOutput:
        """
        Args:
            input_ids: (B, T).
            pixel_values: (B, 3, height, width).
            attention_mask: (B, T), zero at padding.
            interpolate_pos_encoding: for images of another size than the config's.
            labels: the number of each pair's image, int64 (B,), not negative: pairs with one image are all positive. None: all images
                are different.
            return_loss: whether to contrast the pairs with the queue; by default where there are labels.
            soft_target_weight: if none is given, that of the config, times `soft_target_share`.

        Returns:
            As of `CLIPModel`, with the loss of momentum distillation.
        """
        return_loss = labels is not None if return_loss is None else return_loss
        if return_loss and self.training:
            with torch.no_grad():
                self.logit_scale.clamp_(0, LARGEST_SCALE)
            self.follow(self.config.momentum)
        outputs: CLIPOutput = super().forward(
            input_ids,
            pixel_values,
            attention_mask,
            interpolate_pos_encoding=interpolate_pos_encoding,
            return_dict=True,
            **kwargs,
        )
        if return_loss:
            own = (outputs.image_embeds, outputs.text_embeds)
            behind = self._momentum_features(input_ids, pixel_values, attention_mask, interpolate_pos_encoding)
            weight = self.soft_weight(soft_target_weight)
            outputs = CLIPOutput(contrast(own, behind, self.queue, self.logit_scale.exp(), weight, labels), **outputs)
            if self.training:
                self.queue.push(*own, labels)
        return outputs

    @torch.no_grad()
    def _momentum_features(
        self, ids: Tensor, pixels: Tensor, mask: Tensor | None, interpolate: bool = False
    ) -> tuple[Tensor, Tensor]:
        seen = self.vision_model_m(pixels, interpolate_pos_encoding=interpolate).pooler_output
        image = self.visual_projection_m(seen)
        text = self.text_model.final_layer_norm(self.text_model_m(ids, attention_mask=mask).pooler_output)
        return F.normalize(image, dim=-1), F.normalize(self.text_projection_m(text), dim=-1)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FeatureQueue):
            module.begin()


AutoConfig.register(CLIPRetrievalConfig.model_type, CLIPRetrievalConfig)
AutoModel.register(CLIPRetrievalConfig, CLIPForRetrieval)
AutoModelForZeroShotImageClassification.register(CLIPRetrievalConfig, CLIPForRetrieval)
