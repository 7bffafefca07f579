"""What the published checkpoints of BLIP have in common: a timm ViT, and BERTs whose names transformers kept."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from transformers import BlipConfig

from prunus.models.convert.published import Published, Rule, Shapes, heads, layers, mlp_width, square_side

SEP = 102
"""[SEP] of BERT's vocabulary. BLIP adds [DEC] and [ENC] at its end."""
LABEL_SMOOTHING = 0.1
"""Of the published training."""


def vision_rules(published: str, ours: str) -> tuple[Rule, ...]:
    """Those of an image encoder whose names begin so in the file, a pattern, and whose model is called so in ours."""
    block, layer = rf"{published}blocks\.(\d+)\.", rf"{ours}.encoder.layers.\1."
    return (
        Rule(f"{published}cls_token", (f"{ours}.embeddings.class_embedding",)),
        Rule(f"{published}pos_embed", (f"{ours}.embeddings.position_embedding",)),
        Rule(rf"{published}patch_embed\.proj\.(\w+)", (rf"{ours}.embeddings.patch_embedding.\1",)),
        Rule(rf"{block}attn\.qkv\.(\w+)", (rf"{layer}self_attn.qkv.\2",)),
        Rule(rf"{block}attn\.proj\.(\w+)", (rf"{layer}self_attn.projection.\2",)),
        Rule(rf"{block}norm([12])\.(\w+)", (rf"{layer}layer_norm\2.\3",)),
        Rule(rf"{block}(mlp\.fc[12]\.\w+)", (rf"{layer}\2",)),
        Rule(rf"{published}norm\.(\w+)", (rf"{ours}.post_layernorm.\1",)),
    )


class PublishedBlip(Published):
    """A task of BLIP. The image encoder becomes `vision_model`; texts keep their names."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *vision_rules(r"visual_encoder\.", "vision_model"),
        Rule(r"(text_(?:encoder|decoder)\..+)", (r"\1",)),
    )
    left_out: ClassVar[dict[str, str]] = {r".+\.position_ids": "counted up, not learned"}
    positions: ClassVar[dict[str, int]] = {r"visual_encoder(_m)?\.pos_embed": 1}
    patches = "visual_encoder.patch_embed.proj.weight"


def blip_config(
    shapes: Shapes, head_width: int, text: str, kind: type[BlipConfig] = BlipConfig, **more: Any
) -> BlipConfig:
    """Sizes of a BLIP.

    Args:
        shapes: published names and shapes.
        head_width: of all attentions.
        text: published path of the BERT that tells the texts' sizes, such as `text_encoder`.
        kind: class of the config.
        more: entries of the config beside those of the towers.
    """
    width, _, patch, _ = shapes[PublishedBlip.patches]
    vision = {
        "hidden_size": width, "num_attention_heads": heads(width, head_width), "patch_size": patch,
        "image_size": patch * square_side(shapes["visual_encoder.pos_embed"][1] - 1),
        "num_hidden_layers": layers(shapes, "visual_encoder.blocks."), "layer_norm_eps": 1e-6,
        "intermediate_size": mlp_width(shapes, r"visual_encoder\.blocks\.\d+\.mlp\.fc1\.bias", width),
    }  # fmt: skip
    vocabulary, hidden = shapes[f"{text}.embeddings.word_embeddings.weight"]
    stem = re.escape(text)
    keys = rf"{stem}\.encoder\.layer\.\d+\.crossattention\.self\d?\.key\.weight"
    reading = next((name for name in shapes if re.fullmatch(keys, name)), f"{text}.….crossattention.self.key.weight")
    language = {
        "vocab_size": vocabulary, "hidden_size": hidden, "num_attention_heads": heads(hidden, head_width),
        "max_position_embeddings": shapes[f"{text}.embeddings.position_embeddings.weight"][0],
        "num_hidden_layers": layers(shapes, f"{text}.encoder.layer."), "encoder_hidden_size": shapes[reading][1],
        "intermediate_size": mlp_width(shapes, rf"{stem}\.encoder\.layer\.\d+\.intermediate\.dense\.bias", hidden),
        "bos_token_id": vocabulary - 2, "sep_token_id": SEP, "eos_token_id": SEP, "pad_token_id": 0,
        "label_smoothing": LABEL_SMOOTHING,
    }  # fmt: skip
    return kind(text_config=language, vision_config=vision, **more)
