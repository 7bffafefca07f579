"""BLIP-2 and InstructBLIP as LAVIS publishes them: EVA's ViT-g, and a Q-Former with BERT's names. Language models have folders of their own."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from torch import Tensor
from transformers import Blip2Config, Blip2ForImageTextRetrieval, PreTrainedModel

from prunus.errors import PrunusError
from prunus.models.blip2_images import Blip2Images, Blip2ImagesConfig, InstructBlipImages, InstructBlipImagesConfig
from prunus.models.convert.blip import vision_rules
from prunus.models.convert.published import (
    Published,
    Rule,
    Shapes,
    heads,
    layers,
    mlp_width,
    square_side,
    with_key_biases,
)

QFORMER = "Qformer.bert"
QFORMER_HEAD_WIDTH = 64
"""Of BERT's attentions. `head_width` is that of the ViT."""
LLAMA_HEAD_WIDTH = 128
"""Of Vicuna's attentions."""
WORDS = f"{QFORMER}.embeddings.word_embeddings.weight"
"""There where the Q-Former reads texts."""
PROJECTION = Rule(r"(?:opt|t5|llm)_proj\.(\w+)", (r"language_projection.\1",))
LANGUAGE_MODEL = {r"(opt|t5|llm)_model\..+": "the language model, which is published by its authors"}


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
        if self.patches not in tensors:
            raise PrunusError(
                "file", self.patches, "there is no image encoder in it: LAVIS publishes that apart, and puts both together when it loads "
                "them; give a file of the state dict of the model that LAVIS has loaded",
            )  # fmt: skip
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
        return {"query_tokens", "itm_head.weight"} <= set(shapes)

    def build(self, shapes: Shapes, head_width: int) -> PreTrainedModel:
        sizes = _sizes(shapes, head_width, {**_words(shapes), "use_qformer_text_input": True})
        return Blip2ForImageTextRetrieval(Blip2Config(**sizes, image_text_hidden_size=shapes["vision_proj.weight"][0]))


class Blip2Image(PublishedBlip2):
    """The second stage up to the language model, to `Blip2Images`."""

    name = "blip2_image"
    rules: ClassVar[tuple[Rule, ...]] = (PROJECTION, *PublishedBlip2.rules)
    left_out: ClassVar[dict[str, str]] = PublishedBlip2.left_out | LANGUAGE_MODEL

    def fits(self, shapes: Shapes) -> bool:
        return "query_tokens" in shapes and _projection(shapes) is not None and WORDS not in shapes

    def build(self, shapes: Shapes, head_width: int) -> PreTrainedModel:
        return Blip2Images(Blip2ImagesConfig(**_sizes(shapes, head_width), text_config=_language(shapes)))


class InstructBlipImage(PublishedBlip2):
    """InstructBLIP up to the language model, to `InstructBlipImages`."""

    name = "instructblip_image"
    rules: ClassVar[tuple[Rule, ...]] = (
        PROJECTION,
        Rule(r"Qformer\.bert\.(embeddings\.(?:word|position)_embeddings\.weight)", (r"qformer.\1",)),
        Rule(r"Qformer\.bert\.embeddings\.LayerNorm\.(\w+)", (r"qformer.embeddings.layernorm.\1",)),
        *PublishedBlip2.rules,
    )
    left_out: ClassVar[dict[str, str]] = PublishedBlip2.left_out | LANGUAGE_MODEL

    def fits(self, shapes: Shapes) -> bool:
        return {"query_tokens", WORDS} <= set(shapes) and _projection(shapes) is not None

    def build(self, shapes: Shapes, head_width: int) -> PreTrainedModel:
        sizes = _sizes(shapes, head_width, _words(shapes))
        return InstructBlipImages(InstructBlipImagesConfig(**sizes, text_config=_language(shapes)))


def _projection(shapes: Shapes) -> str | None:
    """Published name of the projection's weight."""
    return next((name for name in shapes if re.fullmatch(r"(opt|t5|llm)_proj\.weight", name)), None)


def _language(shapes: Shapes) -> dict[str, Any]:
    """A config of the language model's type and width; its other sizes no shape tells."""
    name = _projection(shapes) or "llm_proj.weight"
    width = shapes[name][0]
    return {
        "opt": {"model_type": "opt", "hidden_size": width}, "t5": {"model_type": "t5", "d_model": width},
        "llm": {"model_type": "llama", "hidden_size": width, "num_attention_heads": max(1, width // LLAMA_HEAD_WIDTH)},
    }[name.partition("_")[0]]  # fmt: skip


def _words(shapes: Shapes) -> dict[str, int]:
    """Sizes of the Q-Former's texts."""
    return {
        "vocab_size": shapes[WORDS][0],
        "max_position_embeddings": shapes[f"{QFORMER}.embeddings.position_embeddings.weight"][0],
    }


def _sizes(shapes: Shapes, head_width: int, texts: dict[str, Any] | None = None) -> dict[str, Any]:
    """Entries of a config: of the image side, and those of the Q-Former's texts."""
    width, _, patch, _ = shapes[PublishedBlip2.patches]
    _, queries, hidden = shapes["query_tokens"]
    count = layers(shapes, f"{QFORMER}.encoder.layer.")
    looking = [name for name in shapes if name.endswith(".crossattention.self.key.bias")]
    vision = {
        "hidden_size": width, "num_attention_heads": heads(width, head_width), "patch_size": patch,
        "image_size": patch * square_side(shapes["visual_encoder.pos_embed"][1] - 1),
        "num_hidden_layers": layers(shapes, "visual_encoder.blocks."),
        "intermediate_size": mlp_width(shapes, r"visual_encoder\.blocks\.\d+\.mlp\.fc1\.bias", width),
        "qkv_bias": "visual_encoder.blocks.0.attn.qkv.bias" in shapes,
    }  # fmt: skip
    qformer = {
        "hidden_size": hidden, "num_attention_heads": heads(hidden, QFORMER_HEAD_WIDTH), "num_hidden_layers": count,
        "intermediate_size": mlp_width(shapes, r"Qformer\.bert\..+\.intermediate_query\.dense\.bias", hidden),
        "cross_attention_frequency": -(-count // max(1, len(looking))), "encoder_hidden_size": width, **(texts or {}),
    }  # fmt: skip
    return {"vision_config": vision, "qformer_config": qformer, "num_query_tokens": queries}
