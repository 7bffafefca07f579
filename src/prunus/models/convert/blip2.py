"""BLIP-2 as LAVIS publishes it: EVA's ViT-g, and a Q-Former with BERT's names. Language models have folders of their own."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from torch import Tensor
from transformers import Blip2Config, Blip2ForImageTextRetrieval, Blip2VisionModelWithProjection, PreTrainedModel

from prunus.models.convert.blip import vision_rules
from prunus.models.convert.published import Published, Rule, Shapes, layers, mlp_width, square_side, with_key_biases

QFORMER = "Qformer.bert"
QFORMER_HEAD_WIDTH = 64
"""Of BERT's attentions. `head_width` is that of the ViT."""


class PublishedBlip2(Published):
    """One with an image encoder. The biases of its queries and values are published apart; keys have none."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *vision_rules(r"visual_encoder\.", "vision_model"),
        Rule(r"ln_vision\.(\w+)", (r"vision_model.post_layernorm.\1",)),
        Rule(r"(query_tokens)", (r"\1",)),
        Rule(r"Qformer\.bert\.embeddings\.LayerNorm\.(\w+)", (r"qformer.layernorm.\1",)),
        Rule(r"Qformer\.bert\.(encoder\.layer\.\d+\.(?:cross)?attention\.)self\.(.+)", (r"qformer.\1attention.\2",)),
        Rule(r"Qformer\.bert\.(encoder\..+)", (r"qformer.\1",)),
    )
    left_out: ClassVar[dict[str, str]] = {
        r".+\.position_ids": "counted up, not learned",
        r"Qformer\.cls\..+": "predicts words in training alone",
    }
    positions: ClassVar[dict[str, int]] = {r"visual_encoder\.pos_embed": 1}
    patches = "visual_encoder.patch_embed.proj.weight"
    head_width = 88

    def prepare(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return with_key_biases(tensors)


class Blip2Matching(PublishedBlip2):
    """The first stage, which matches images and texts, to transformers' `Blip2ForImageTextRetrieval`."""

    name = "blip2_itm"
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(r"Qformer\.bert\.(embeddings\.(?:word|position)_embeddings\.weight)", (r"\1",)),
        Rule(r"(vision|text)_proj\.(\w+)", (r"\1_projection.\2",)),
        Rule(r"(itm_head\.\w+)", (r"\1",)),
        *PublishedBlip2.rules,
    )
    left_out: ClassVar[dict[str, str]] = PublishedBlip2.left_out | {"temp": "the temperature of the contrastive loss"}

    def fits(self, shapes: Shapes) -> bool:
        return {"query_tokens", "visual_encoder.cls_token", "itm_head.weight"} <= set(shapes)

    def build(self, shapes: Shapes, head_width: int) -> PreTrainedModel:
        vocabulary, _ = shapes[f"{QFORMER}.embeddings.word_embeddings.weight"]
        texts = {"vocab_size": vocabulary, "use_qformer_text_input": True}
        texts["max_position_embeddings"] = shapes[f"{QFORMER}.embeddings.position_embeddings.weight"][0]
        return Blip2ForImageTextRetrieval(_config(shapes, head_width, shapes["vision_proj.weight"][0], texts))


class Blip2Image(PublishedBlip2):
    """The second stage up to the language model, to transformers' `Blip2VisionModelWithProjection`: its projection makes what the
    language model reads."""

    name = "blip2_image"
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(r"(?:opt|t5)_proj\.(\w+)", (r"vision_projection.\1",)),
        *PublishedBlip2.rules,
    )
    left_out: ClassVar[dict[str, str]] = PublishedBlip2.left_out | {
        r"(opt|t5)_model\..+": "the language model, which is published by its authors",
    }

    def fits(self, shapes: Shapes) -> bool:
        projected = any(re.fullmatch(r"(opt|t5)_proj\.weight", name) for name in shapes)
        return projected and {"query_tokens", "visual_encoder.cls_token"} <= set(shapes)

    def build(self, shapes: Shapes, head_width: int) -> PreTrainedModel:
        width = next(shape[0] for name, shape in shapes.items() if re.fullmatch(r"(opt|t5)_proj\.weight", name))
        return Blip2VisionModelWithProjection(_config(shapes, head_width, width, {}))


def _config(shapes: Shapes, head_width: int, projected: int, texts: dict[str, Any]) -> Blip2Config:
    """Sizes of the image side, what it projects to, and those of the Q-Former's texts."""
    width, _, patch, _ = shapes[PublishedBlip2.patches]
    _, queries, hidden = shapes["query_tokens"]
    count = layers(shapes, f"{QFORMER}.encoder.layer.")
    looking = [name for name in shapes if name.endswith(".crossattention.self.key.bias")]
    vision = {
        "hidden_size": width, "num_attention_heads": width // head_width, "patch_size": patch,
        "image_size": patch * square_side(shapes["visual_encoder.pos_embed"][1] - 1),
        "num_hidden_layers": layers(shapes, "visual_encoder.blocks."),
        "intermediate_size": mlp_width(shapes, r"visual_encoder\.blocks\.\d+\.mlp\.fc1\.bias", width),
        "qkv_bias": "visual_encoder.blocks.0.attn.qkv.bias" in shapes,
    }  # fmt: skip
    qformer = {
        "hidden_size": hidden, "num_attention_heads": hidden // QFORMER_HEAD_WIDTH, "num_hidden_layers": count,
        "intermediate_size": mlp_width(shapes, r"Qformer\.bert\..+\.intermediate_query\.dense\.bias", hidden),
        "cross_attention_frequency": -(-count // len(looking)), "encoder_hidden_size": width, **texts,
    }  # fmt: skip
    return Blip2Config(
        vision_config=vision, qformer_config=qformer, num_query_tokens=queries, image_text_hidden_size=projected
    )
