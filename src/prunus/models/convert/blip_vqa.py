"""BLIP for visual question answering."""

from __future__ import annotations

from transformers import PreTrainedModel

from prunus.models.blip_vqa import BlipForVqa, BlipVqaConfig
from prunus.models.convert.blip import PublishedBlip, blip_config
from prunus.models.convert.published import Shapes


class BlipVqa(PublishedBlip):
    """A question encoder and an answer decoder, to `BlipForVqa`."""

    name = "blip_vqa"

    def fits(self, shapes: Shapes) -> bool:
        return {"visual_encoder.cls_token", "text_encoder.embeddings.LayerNorm.weight", "text_decoder.cls.predictions.bias"} <= set(shapes)  # fmt: skip

    def build(self, shapes: Shapes, head_width: int) -> PreTrainedModel:
        vocabulary = shapes["text_encoder.embeddings.word_embeddings.weight"][0]
        return BlipForVqa(blip_config(shapes, head_width, "text_encoder", BlipVqaConfig, enc_token_id=vocabulary - 1))
