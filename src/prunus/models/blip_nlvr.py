"""BLIP for natural language and visual reasoning: is a sentence true of two images?

One ViT reads both images, and each layer of the text encoder attends to them with two cross-attentions of their own, whose
outputs are averaged in the lower layers and merged by a linear layer in the upper ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, BlipConfig, BlipTextConfig, BlipTextModel, BlipVisionModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.blip.modeling_blip import BlipPreTrainedModel
from transformers.models.blip.modeling_blip_text import BlipTextEmbeddings, BlipTextEncoder, BlipTextSelfAttention

from prunus.errors import PrunusError

# B: batch, T: tokens of the text, P: tokens of one image, D: width of the text encoder


class BlipNlvrConfig(BlipConfig):  # type: ignore[misc]
    """As `BlipConfig`. Labels are 0 (false) and 1 (true)."""

    model_type = "blip_nlvr"

    merge_from_layer: int = 6
    """The first layer of the text encoder, from 0, that merges what it read of the two images by a linear layer."""
    enc_token_id: int = 30523
    """The token [ENC], which takes the place of the first one."""


class BlipNlvrCrossOutput(nn.Module):
    """What both cross-attentions read, made one, with residual and norm."""

    def __init__(self, config: BlipTextConfig, merges: bool):
        super().__init__()
        self.dense0 = nn.Linear(config.hidden_size, config.hidden_size)
        self.dense1 = nn.Linear(config.hidden_size, config.hidden_size)
        self.merge_layer = nn.Linear(2 * config.hidden_size, config.hidden_size) if merges else None
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, read0: Tensor, read1: Tensor, residual: Tensor) -> Tensor:
        """All (B, T, D)."""
        merged = (read0 + read1) / 2 if self.merge_layer is None else self.merge_layer(torch.cat([read0, read1], -1))
        normed: Tensor = self.LayerNorm(self.dropout(merged) + residual)
        return normed


class BlipNlvrCrossAttention(nn.Module):
    """The two cross-attentions of a layer, one for each image."""

    def __init__(self, config: BlipTextConfig, layer: int, merges: bool):
        super().__init__()
        self.self0 = BlipTextSelfAttention(config, is_cross_attention=True, layer_idx=layer)
        self.self1 = BlipTextSelfAttention(config, is_cross_attention=True, layer_idx=layer)
        self.output = BlipNlvrCrossOutput(config, merges)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:
        """What a layer of `BlipTextModel` asks of its cross-attention.

        Args:
            hidden_states: (B, T, D).
            encoder_hidden_states: of the first image, then of the second, (B, 2 P, width of the ViT).
        """
        first, second = encoder_hidden_states.chunk(2, 1)
        read0 = self.output.dense0(self.self0(hidden_states, encoder_hidden_states=first)[0])
        read1 = self.output.dense1(self.self1(hidden_states, encoder_hidden_states=second)[0])
        return self.output(read0, read1, hidden_states), None


class BlipNlvrTextModel(BlipTextModel):  # type: ignore[misc]
    """The text encoder. It is given states of the first image, then of the second, (B, 2 P, width of the ViT)."""

    def __init__(self, config: BlipTextConfig, merge_from_layer: int):
        super(BlipTextModel, self).__init__(
            config
        )  # not its parent's, which would be finished with other cross-attentions
        self.embeddings, self.encoder, self.pooler = BlipTextEmbeddings(config), BlipTextEncoder(config), None
        for number, layer in enumerate(self.encoder.layer):
            layer.crossattention = BlipNlvrCrossAttention(config, number, merges=number >= merge_from_layer)
        self.post_init()


class BlipForImagesAndTextClassification(BlipPreTrainedModel):  # type: ignore[misc]
    """Two images and a sentence, classified.

    Examples:
        >>> model(input_ids=ids, attention_mask=mask, pixel_values=pixels_B23HW, labels=labels).loss.shape
        torch.Size([])
    """

    config_class = BlipNlvrConfig
    _no_split_modules = ["BlipEncoderLayer", "BlipTextLayer", "BlipTextEmbeddings"]  # noqa: RUF012

    def __init__(self, config: BlipNlvrConfig):
        super().__init__(config)
        width = config.text_config.hidden_size
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipNlvrTextModel(config.text_config, config.merge_from_layer)
        self.cls_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.num_labels))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.text_encoder.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_encoder.set_input_embeddings(value)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **_: object,
    ) -> SequenceClassifierOutput:
        """
        Args:
            input_ids: (B, T); the first token may be any, [ENC] takes its place.
            pixel_values: (B, 2, 3, height, width).
            attention_mask: (B, T), zero at padding.
            labels: (B,), int64.

        Returns:
            The cross-entropy, None without labels; logits (B, labels).

        Raises:
            PrunusError: there are not two images to each text.
        """
        if pixel_values.ndim != 5 or pixel_values.shape[:2] != (len(input_ids), 2):
            raise PrunusError(
                "pixel_values",
                tuple(pixel_values.shape),
                f"give two images to each of the {len(input_ids)} texts: (B, 2, 3, height, width)",
            )
        pixels = pixel_values.flatten(0, 1)
        seen = self.vision_model(pixels, interpolate_pos_encoding=interpolate_pos_encoding).last_hidden_state
        ids = input_ids.clone()
        ids[:, 0] = self.config.enc_token_id
        read = self.text_encoder(
            ids, attention_mask=attention_mask, encoder_hidden_states=seen.unflatten(0, (-1, 2)).flatten(1, 2)
        ).last_hidden_state
        logits = self.cls_head(read[:, 0])
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


AutoConfig.register(BlipNlvrConfig.model_type, BlipNlvrConfig)
AutoModel.register(BlipNlvrConfig, BlipForImagesAndTextClassification)
