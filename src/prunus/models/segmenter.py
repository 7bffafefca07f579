"""Segmenter: a ViT, and a transformer over its patches and one token a class, whose products are the masks.

Strudel et al., "Segmenter: Transformer for Semantic Segmentation", 2021. transformers has none.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
    initialization,
)
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.vit.modeling_vit import ViTEmbeddings, ViTLayer, ViTPreTrainedModel
from transformers.utils.generic import can_return_tuple

from prunus.errors import PrunusError

# B: batch, N: patches, K: classes, D: width, H, W: pixels


class SegmenterConfig(PreTrainedConfig):  # type: ignore[misc]
    """A Segmenter: `vision_config` of its encoder, `decoder_config` of its mask transformer (both `ViTConfig`).

    Examples:
        >>> SegmenterConfig(num_labels=5).decoder_config.num_hidden_layers
        2
    """

    model_type = "segmenter"
    sub_configs = {"vision_config": ViTConfig, "decoder_config": ViTConfig}  # noqa: RUF012

    vision_config: Any = None
    """Default: ViT-B for images of 512 pixels."""
    decoder_config: Any = None
    """What it does not say is as in the encoder, but for two layers."""
    semantic_loss_ignore_index: int = 255
    """The label of pixels that the loss does not count."""
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        shared = {"layer_norm_eps": 1e-5, "image_size": 512}
        vision, decoder = self.vision_config or {}, self.decoder_config or {}
        if isinstance(vision, dict):
            vision = ViTConfig(**shared | vision)
        if isinstance(decoder, dict):
            like = (
                "hidden_size", "num_attention_heads", "intermediate_size", "layer_norm_eps", "image_size", "patch_size",
            )  # fmt: skip
            decoder = ViTConfig(**{name: getattr(vision, name) for name in like} | {"num_hidden_layers": 2} | decoder)
        self.vision_config, self.decoder_config = vision, decoder
        super().__post_init__(**kwargs)


class SegmenterEmbeddings(ViTEmbeddings):  # type: ignore[misc]
    """A ViT's, whose positions are resized linearly."""

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        """Positions for an image of this size in pixels, (1, 1 + N, D)."""
        here, there = (
            (side[0] // self.patch_size, side[1] // self.patch_size) for side in (self.image_size, (height, width))
        )
        if here == there:
            return self.position_embeddings  # type: ignore[no-any-return]
        first, grid = self.position_embeddings[:, :1], self.position_embeddings[:, 1:].unflatten(1, here)
        resized = F.interpolate(grid.permute(0, 3, 1, 2), size=there, mode="bilinear", align_corners=False)
        return torch.cat([first, resized.flatten(2).mT], 1)


class SegmenterEncoder(ViTPreTrainedModel):  # type: ignore[misc]
    """The ViT, for images of any multiple of its patch."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.embeddings = SegmenterEmbeddings(config)
        self.layers = nn.ModuleList([ViTLayer(config) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Tensor:
        """States of the class token and the patches, (B, 1 + N, D)."""
        states = self.embeddings(pixel_values, interpolate_pos_encoding=True)
        for layer in self.layers:
            states = layer(states, None, **kwargs)
        return self.layernorm(states)  # type: ignore[no-any-return]


class SegmenterDecoder(ViTPreTrainedModel):  # type: ignore[misc]
    """The mask transformer: a score of every patch for every class."""

    def __init__(self, config: ViTConfig, width: int, classes: int) -> None:
        super().__init__(config)
        self.projection = nn.Linear(width, config.hidden_size)
        self.class_embeddings = nn.Parameter(torch.randn(1, classes, config.hidden_size))
        self.layers = nn.ModuleList([ViTLayer(config) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.patch_projection = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.class_projection = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.mask_norm = nn.LayerNorm(classes)
        self.post_init()

    def forward(self, patches: Tensor, **kwargs: Any) -> Tensor:
        """Of states of patches (B, N, D), the scores (B, N, K)."""
        count = patches.shape[1]
        states = torch.cat([self.projection(patches), self.class_embeddings.expand(len(patches), -1, -1)], 1)
        for layer in self.layers:
            states = layer(states, None, **kwargs)
        states = self.layernorm(states)
        of_patches = F.normalize(self.patch_projection(states[:, :count]), dim=-1)
        of_classes = F.normalize(self.class_projection(states[:, count:]), dim=-1)
        return self.mask_norm(of_patches @ of_classes.mT)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SegmenterDecoder):
            initialization.trunc_normal_(module.class_embeddings, std=self.config.initializer_range)


class SegmenterForSemanticSegmentation(PreTrainedModel):  # type: ignore[misc]
    """A class for every pixel of images of any size.

    Examples:
        >>> model = SegmenterForSemanticSegmentation(SegmenterConfig(num_labels=5, image_size=64))
        >>> model(torch.randn(1, 3, 50, 70)).logits.shape
        torch.Size([1, 5, 50, 70])
    """

    config_class, main_input_name, input_modalities = SegmenterConfig, "pixel_values", ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_attention_backend = True

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__(config)
        self.encoder = SegmenterEncoder(config.vision_config)
        self.decoder = SegmenterDecoder(config.decoder_config, config.vision_config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> SemanticSegmenterOutput:
        """Logits as large as the image, which is padded with zeros to whole patches while it is looked at.

        Args:
            pixel_values: (B, 3, H, W), normalised.
            labels: (B, H, W), a class a pixel.

        Returns:
            logits (B, K, H, W), and the mean cross-entropy where there are labels.
        """
        height, width = pixel_values.shape[-2:]
        patch = self.config.vision_config.patch_size
        padded = F.pad(pixel_values, (0, -width % patch, 0, -height % patch))
        grid = (padded.shape[-2] // patch, padded.shape[-1] // patch)
        scores = self.decoder(self.encoder(padded, **kwargs)[:, 1:], **kwargs)
        small = scores.mT.unflatten(-1, grid)
        logits = F.interpolate(small, size=padded.shape[-2:], mode="bilinear", align_corners=False)[
            ..., :height, :width
        ]
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits, labels.long(), ignore_index=self.config.semantic_loss_ignore_index)
        return SemanticSegmenterOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def segment(self, pixel_values: Tensor, crop: int | None = None, stride: int | None = None) -> Tensor:
        """Logits of large images, (B, K, H, W), looked at in square crops; where crops overlap, their mean.

        Args:
            pixel_values: (B, 3, H, W), normalised.
            crop: side of a crop in pixels; default: that of the images that the model was made for.
            stride: from one crop to the next; default: a crop. The last one ends where the image does.

        Raises:
            PrunusError: a side is not positive, or the stride leaves gaps.
        """
        crop = self.config.vision_config.image_size if crop is None else crop
        stride = crop if stride is None else stride
        if crop < 1:
            raise PrunusError("crop", crop, "take a side in pixels, one or more")
        if not 1 <= stride <= crop:
            raise PrunusError("stride", stride, f"take one from 1 to the crop's side {crop}")
        return in_windows(lambda part: self(part).logits, pixel_values, crop, stride)


def in_windows(run: Callable[[Tensor], Tensor], pixel_values: Tensor, crop: int, stride: int) -> Tensor:
    """What a model says of large images, looked at in square crops; where crops overlap, the mean.

    Args:
        run: from pixels (B, 3, h, w) to what is said of each, (B, K, h, w).
        pixel_values: (B, 3, H, W).
        crop: side of a crop in pixels.
        stride: from one crop to the next; the last one ends where the image does.
    """
    batch, _, *sides = pixel_values.shape
    total, seen = None, pixel_values.new_zeros(1, 1, *sides)
    for top, left in product(*(_starts(side, crop, stride) for side in sides)):
        here = (..., slice(top, top + crop), slice(left, left + crop))
        said = run(pixel_values[here])
        total = said.new_zeros(batch, said.shape[1], *sides) if total is None else total
        total[here] += said
        seen[here] += 1
    assert total is not None
    return total / seen


def _starts(side: int, crop: int, stride: int) -> list[int]:
    """Where crops begin along a side."""
    last = max(side - crop, 0)
    return [*range(0, last, stride), last]


AutoConfig.register(SegmenterConfig.model_type, SegmenterConfig)
AutoModel.register(SegmenterConfig, SegmenterForSemanticSegmentation)
AutoModelForSemanticSegmentation.register(SegmenterConfig, SegmenterForSemanticSegmentation)
