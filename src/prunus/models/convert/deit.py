"""DeiT as timm publishes it, with and without a distillation token."""

from __future__ import annotations

from typing import ClassVar

from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from prunus.models.convert.published import Published, Rule, Shapes, heads, layers, mlp_width, square_side, thirds


def timm_rules(ours: str, classifier: str) -> tuple[Rule, ...]:
    """Those of a timm ViT, whose model of transformers is called `ours` and its classifier so."""
    block, layer = r"blocks\.(\d+)\.", rf"{ours}.layers.\1."
    qkv = tuple(rf"{layer}attention.{part}_proj.\2" for part in "qkv")
    return (
        Rule("cls_token", (f"{ours}.embeddings.cls_token",)),
        Rule("pos_embed", (f"{ours}.embeddings.position_embeddings",)),
        Rule(r"patch_embed\.proj\.(\w+)", (rf"{ours}.embeddings.patch_embeddings.projection.\1",)),
        Rule(rf"{block}attn\.qkv\.(\w+)", qkv, thirds),
        Rule(rf"{block}attn\.proj\.(\w+)", (rf"{layer}attention.o_proj.\2",)),
        Rule(rf"{block}norm1\.(\w+)", (rf"{layer}layernorm_before.\2",)),
        Rule(rf"{block}norm2\.(\w+)", (rf"{layer}layernorm_after.\2",)),
        Rule(rf"{block}(mlp\.fc[12]\.\w+)", (rf"{layer}\2",)),
        Rule(r"norm\.(\w+)", (rf"{ours}.layernorm.\1",)),
        Rule(r"head\.(\w+)", (rf"{classifier}.\1",)),
    )


def timm_sizes(shapes: Shapes, head_width: int, leading: int) -> dict[str, object]:
    """Entries of a config, with `leading` tokens before the patches."""
    width, _, patch, _ = shapes["patch_embed.proj.weight"]
    return {
        "hidden_size": width, "num_attention_heads": heads(width, head_width), "patch_size": patch,
        "image_size": patch * square_side(shapes["pos_embed"][1] - leading), "num_hidden_layers": layers(shapes, "blocks."),
        "intermediate_size": mlp_width(shapes, r"blocks\.\d+\.mlp\.fc1\.bias", width), "layer_norm_eps": 1e-6,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": shapes["head.weight"][0],
    }  # fmt: skip


class DeiT(Published):
    """A classifier that looks at its class token, to transformers' `ViTForImageClassification`."""

    name = "deit"
    rules: ClassVar[tuple[Rule, ...]] = (*timm_rules("vit", "classifier"),)
    positions: ClassVar[dict[str, int]] = {"pos_embed": 1}
    patches = "patch_embed.proj.weight"
    normalisation = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    margin = 256 / 224

    def fits(self, shapes: Shapes) -> bool:
        there = {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.bias", "head.weight"}
        return there <= set(shapes) and "dist_token" not in shapes

    def build(self, shapes: Shapes, head_width: int) -> PreTrainedModel:
        return ViTForImageClassification(ViTConfig(**timm_sizes(shapes, head_width, 1)))


class DistilledDeiT(Published):
    """One with a distillation token and two heads, to transformers' `DeiTForImageClassificationWithTeacher`."""

    name = "deit_distilled"
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("dist_token", ("deit.embeddings.distillation_token",)),
        Rule(r"head_dist\.(\w+)", (r"distillation_classifier.\1",)),
        *timm_rules("deit", "cls_classifier"),
    )
    positions: ClassVar[dict[str, int]] = {"pos_embed": 2}
    patches = "patch_embed.proj.weight"
    normalisation = DeiT.normalisation
    margin = DeiT.margin

    def fits(self, shapes: Shapes) -> bool:
        return {"cls_token", "dist_token", "pos_embed", "blocks.0.attn.qkv.weight", "head_dist.weight"} <= set(shapes)

    def build(self, shapes: Shapes, head_width: int) -> PreTrainedModel:
        return DeiTForImageClassificationWithTeacher(DeiTConfig(**timm_sizes(shapes, head_width, 2)))
