"""BLIP for retrieval, with its momentum copies and queues."""

from __future__ import annotations

from transformers import PreTrainedModel

from prunus.models.blip_retrieval import BlipForRetrievalTraining, BlipRetrievalConfig
from prunus.models.convert.blip import PublishedBlip, blip_config, vision_rules
from prunus.models.convert.published import QUEUES, Rule, Shapes


class BlipRetrieval(PublishedBlip):
    """Two encoders that match, to our `BlipForRetrievalTraining`."""

    name = "blip_retrieval"
    rules = (
        *PublishedBlip.rules,
        *vision_rules(r"visual_encoder_m\.", "vision_model_m"),
        Rule(r"((?:text_encoder_m\.|vision_proj|text_proj|itm_head).+)", (r"\1",)),
        Rule("temp", ("temp",)),
        *QUEUES,
    )

    def fits(self, shapes: Shapes) -> bool:
        return {"visual_encoder_m.cls_token", "itm_head.weight", "image_queue", "vision_proj_m.weight"} <= set(shapes)

    def build(self, shapes: Shapes, head_width: int) -> PreTrainedModel:
        features, places = shapes["image_queue"]
        config = blip_config(
            shapes, head_width, "text_encoder", BlipRetrievalConfig, image_text_hidden_size=features, queue_size=places,
            enc_token_id=shapes["text_encoder.embeddings.word_embeddings.weight"][0] - 1,
        )  # fmt: skip
        return BlipForRetrievalTraining(config)
