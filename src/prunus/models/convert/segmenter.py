"""Segmenter as its authors publish it: a ViT of timm's names, and a mask transformer."""

from __future__ import annotations

from typing import ClassVar

from transformers import PreTrainedModel
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from prunus.models.convert.published import (
    Published,
    Rule,
    Shapes,
    heads,
    layers,
    mlp_width,
    square_side,
    thirds,
    transposed,
)
from prunus.models.segmenter import SegmenterConfig, SegmenterForSemanticSegmentation

BLOCK, LAYER = r"(encoder|decoder)\.blocks\.(\d+)\.", r"\1.layers.\2."


class Segmenter(Published):
    """A segmenter with a mask transformer, to `SegmenterForSemanticSegmentation`."""

    name = "segmenter"
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(r"encoder\.cls_token", ("encoder.embeddings.cls_token",)),
        Rule(r"encoder\.pos_embed", ("encoder.embeddings.position_embeddings",)),
        Rule(r"encoder\.patch_embed\.proj\.(\w+)", (r"encoder.embeddings.patch_embeddings.projection.\1",)),
        Rule(rf"{BLOCK}attn\.qkv\.(\w+)", tuple(rf"{LAYER}attention.{part}_proj.\3" for part in "qkv"), thirds),
        Rule(rf"{BLOCK}attn\.proj\.(\w+)", (rf"{LAYER}attention.o_proj.\3",)),
        Rule(rf"{BLOCK}norm1\.(\w+)", (rf"{LAYER}layernorm_before.\3",)),
        Rule(rf"{BLOCK}norm2\.(\w+)", (rf"{LAYER}layernorm_after.\3",)),
        Rule(rf"{BLOCK}(mlp\.fc[12]\.\w+)", (rf"{LAYER}\3",)),
        Rule(r"encoder\.norm\.(\w+)", (r"encoder.layernorm.\1",)),
        Rule(r"decoder\.proj_dec\.(\w+)", (r"decoder.projection.\1",)),
        Rule(r"decoder\.cls_emb", ("decoder.class_embeddings",)),
        Rule(r"decoder\.decoder_norm\.(\w+)", (r"decoder.layernorm.\1",)),
        Rule(r"decoder\.proj_patch", ("decoder.patch_projection.weight",), transposed),
        Rule(r"decoder\.proj_classes", ("decoder.class_projection.weight",), transposed),
        Rule(r"decoder\.mask_norm\.(\w+)", (r"decoder.mask_norm.\1",)),
    )
    left_out: ClassVar[dict[str, str]] = {
        r"encoder\.head\.\w+": "the classifier of the ImageNet model, which no mask is made with",
    }
    interpolation = "bilinear"
    normalisation = (IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD)
    positions: ClassVar[dict[str, int]] = {r"encoder\.pos_embed": 1}
    patches = "encoder.patch_embed.proj.weight"

    def fits(self, shapes: Shapes) -> bool:
        return {"encoder.patch_embed.proj.weight", "decoder.cls_emb", "decoder.mask_norm.weight"} <= set(shapes)

    def build(self, shapes: Shapes, head_width: int) -> PreTrainedModel:
        wide, _, patch, _ = shapes["encoder.patch_embed.proj.weight"]
        image_size = patch * square_side(shapes["encoder.pos_embed"][1] - 1)
        parts = {
            part: {
                "hidden_size": width, "num_attention_heads": heads(width, head_width), "num_hidden_layers": layers(shapes, f"{part}.blocks."),
                "intermediate_size": mlp_width(shapes, rf"{part}\.blocks\.\d+\.mlp\.fc1\.bias", width), "patch_size": patch,
                "image_size": image_size, "layer_norm_eps": 1e-5,
            }
            for part, width in (("encoder", wide), ("decoder", shapes["decoder.cls_emb"][-1]))
        }  # fmt: skip
        config = SegmenterConfig(
            vision_config=parts["encoder"], decoder_config=parts["decoder"], num_labels=shapes["decoder.cls_emb"][1]
        )
        return SegmenterForSemanticSegmentation(config)
