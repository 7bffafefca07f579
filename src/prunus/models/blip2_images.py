"""BLIP-2 and InstructBLIP up to the language model: what it reads of an image. transformers has them with a language model alone.

Parameters have the names of `Blip2ForConditionalGeneration` and `InstructBlipForConditionalGeneration`, whose computations these are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerModel,
    Blip2VisionModel,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerModel,
    InstructBlipVisionModel,
)
from transformers.models.blip_2.modeling_blip_2 import Blip2PreTrainedModel
from transformers.models.instructblip.modeling_instructblip import InstructBlipPreTrainedModel

# B: batch, T: tokens of an instruction


class Blip2ImagesConfig(Blip2Config):  # type: ignore[misc]
    """As `Blip2Config`. Of `text_config` only the width is read."""

    model_type = "blip2_images"


class InstructBlipImagesConfig(InstructBlipConfig):  # type: ignore[misc]
    """As `InstructBlipConfig`. Of `text_config` only the width is read."""

    model_type = "instructblip_images"


class Blip2Images(Blip2PreTrainedModel):  # type: ignore[misc]
    """A ViT, a Q-Former and a projection. `pooler_output` is what the language model reads, (B, queries, its width).

    Examples:
        >>> sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8}
        >>> config = Blip2ImagesConfig(
        ...     vision_config={**sizes, "image_size": 8, "patch_size": 4}, qformer_config=sizes, num_query_tokens=3,
        ...     text_config={"model_type": "t5", "d_model": 6},
        ... )
        >>> Blip2Images(config)(pixel_values=torch.randn(2, 3, 8, 8)).pooler_output.shape
        torch.Size([2, 3, 6])
    """

    config_class, main_input_name, input_modalities = Blip2ImagesConfig, "pixel_values", ("image",)
    _keep_in_fp32_modules = ["query_tokens", "qformer"]  # noqa: RUF012
    _supports_flash_attn = False

    def __init__(self, config: Blip2ImagesConfig) -> None:
        super().__init__(config)
        width = config.qformer_config.hidden_size
        self.vision_model = Blip2VisionModel._from_config(config.vision_config)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, width))
        self.qformer = Blip2QFormerModel._from_config(config.qformer_config)
        self.language_projection = nn.Linear(width, config.text_config.hidden_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.vision_model.get_input_embeddings()
        return embeddings

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False, **kwargs: Any) -> Any:
        """
        Args:
            pixel_values: (B, 3, height, width).
            interpolate_pos_encoding: for images of another size than the config's.
        """
        return Blip2ForConditionalGeneration.get_image_features(
            self, pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )


class InstructBlipImages(InstructBlipPreTrainedModel):  # type: ignore[misc]
    """A ViT, a Q-Former that also reads the instruction, and a projection. `pooler_output` is what the language model reads,
    (B, queries, its width)."""

    config_class, main_input_name, input_modalities = InstructBlipImagesConfig, "pixel_values", ("image", "text")
    _keep_in_fp32_modules = ["query_tokens"]  # noqa: RUF012

    def __init__(self, config: InstructBlipImagesConfig) -> None:
        super().__init__(config)
        width = config.qformer_config.hidden_size
        self.vision_model = InstructBlipVisionModel._from_config(config.vision_config)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, width))
        self.qformer = InstructBlipQFormerModel._from_config(config.qformer_config)
        self.language_projection = nn.Linear(width, config.text_config.hidden_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.qformer.get_input_embeddings()
        return embeddings

    def forward(
        self,
        pixel_values: Tensor,
        qformer_input_ids: Tensor,
        qformer_attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> Any:
        """
        Args:
            pixel_values: (B, 3, height, width).
            qformer_input_ids: of the instruction, in the Q-Former's vocabulary, (B, T).
            qformer_attention_mask: (B, T), zero at padding.
            interpolate_pos_encoding: for images of another size than the config's.
        """
        return InstructBlipForConditionalGeneration.get_image_features(
            self, pixel_values, qformer_input_ids, qformer_attention_mask,
            interpolate_pos_encoding=interpolate_pos_encoding, **kwargs,
        )  # fmt: skip


AutoConfig.register(Blip2ImagesConfig.model_type, Blip2ImagesConfig)
AutoModel.register(Blip2ImagesConfig, Blip2Images)
AutoConfig.register(InstructBlipImagesConfig.model_type, InstructBlipImagesConfig)
AutoModel.register(InstructBlipImagesConfig, InstructBlipImages)
