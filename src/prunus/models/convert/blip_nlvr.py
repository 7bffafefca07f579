"""BLIP for natural language and visual reasoning."""

from __future__ import annotations

import re

from transformers import PreTrainedModel

from prunus.models.blip_nlvr import BlipForImagesAndTextClassification, BlipNlvrConfig
from prunus.models.convert.blip import PublishedBlip, blip_config
from prunus.models.convert.published import Rule, Shapes, layers

MERGE = re.compile(r"text_encoder\.encoder\.layer\.(\d+)\.crossattention\.output\.merge_layer\.weight")
CROSS = "text_encoder.encoder.layer.0.crossattention.self1.key.weight"


class BlipNlvr(PublishedBlip):
    """Two images and a sentence, to our `BlipForImagesAndTextClassification`."""

    name = "blip_nlvr"
    rules = (*PublishedBlip.rules, Rule(r"(cls_head\.[02]\.\w+)", (r"\1",)))

    def fits(self, shapes: Shapes) -> bool:
        return {"visual_encoder.cls_token", "cls_head.0.weight", CROSS} <= set(shapes)

    def build(self, shapes: Shapes, head_width: int) -> PreTrainedModel:
        merging = [int(found[1]) for name in shapes if (found := MERGE.fullmatch(name))]
        config = blip_config(
            shapes, head_width, "text_encoder", BlipNlvrConfig,
            merge_from_layer=min(merging, default=layers(shapes, "text_encoder.encoder.layer.")),
            enc_token_id=shapes["text_encoder.embeddings.word_embeddings.weight"][0] - 1,
        )  # fmt: skip
        return BlipForImagesAndTextClassification(config)
