"""BLIP for image captioning."""

from __future__ import annotations

from transformers import BlipForConditionalGeneration, PreTrainedModel

from prunus.models.convert.blip import PublishedBlip, blip_config
from prunus.models.convert.published import Shapes


class BlipCaption(PublishedBlip):
    """A decoder that looks at the image, to transformers' `BlipForConditionalGeneration`."""

    name = "blip_caption"

    def fits(self, shapes: Shapes) -> bool:
        names = {"visual_encoder.cls_token", "text_decoder.cls.predictions.bias"}
        return names <= set(shapes) and not any(name.startswith("text_encoder") for name in shapes)

    def build(self, shapes: Shapes, head_width: int) -> PreTrainedModel:
        return BlipForConditionalGeneration(blip_config(shapes, head_width, "text_decoder.bert"))
