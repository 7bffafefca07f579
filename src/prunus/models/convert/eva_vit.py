"""EVA's ViT with a classifier, by the names of BEiT's code."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel

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
from prunus.models.eva_vit import EvaVitConfig, EvaVitForImageClassification


class EvaVit(Published):
    """A ViT whose keys have no bias, to `EvaVitForImageClassification`."""

    name = "eva_vit"
    rules: ClassVar[tuple[Rule, ...]] = (
        *vision_rules("", "vision_model"),
        Rule(r"fc_norm\.(\w+)", (r"vision_model.post_layernorm.\1",)),
        Rule(r"head\.(\w+)", (r"classifier.\1",)),
    )
    left_out: ClassVar[dict[str, str]] = {r"mask_token|lm_head\.\w+": "what is only trained with"}
    positions: ClassVar[dict[str, int]] = {"pos_embed": 1}
    patches = "patch_embed.proj.weight"
    head_width = 88

    def fits(self, shapes: Shapes) -> bool:
        return {"pos_embed", "patch_embed.proj.weight", "blocks.0.attn.q_bias", "blocks.0.attn.v_bias"} <= set(shapes)

    def prepare(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return with_key_biases(tensors)

    def build(self, shapes: Shapes, head_width: int) -> PreTrainedModel:
        width, _, patch, _ = shapes["patch_embed.proj.weight"]
        config = EvaVitConfig(
            hidden_size=width, num_attention_heads=heads(width, head_width), num_hidden_layers=layers(shapes, "blocks."), patch_size=patch,
            intermediate_size=mlp_width(shapes, r"blocks\.\d+\.mlp\.fc1\.bias", width),
            image_size=patch * square_side(shapes["pos_embed"][1] - 1), num_labels=shapes["head.weight"][0],
            mean_pooling="fc_norm.weight" in shapes,
        )  # fmt: skip
        return EvaVitForImageClassification(config)
