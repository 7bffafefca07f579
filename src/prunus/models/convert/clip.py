"""CLIP as OpenAI publishes it, and as UPop's authors train it for retrieval."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import CLIPConfig, CLIPModel, PreTrainedModel

from prunus.models.clip_retrieval import CLIPForRetrieval, CLIPRetrievalConfig
from prunus.models.convert.published import (
    QUEUES,
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


def clip_rules(copy: str) -> tuple[Rule, ...]:
    """Those of both towers, or of their momentum copies, whose names end in `copy`."""
    rules = []
    for published, ours in (
        (f"visual{copy}.transformer", f"vision_model{copy}"),
        (f"transformer{copy}", f"text_model{copy}"),
    ):
        block, layer = (
            rf"{published}\.resblocks\.(\d+)\.".replace("visual.", r"visual\."),
            rf"{ours}.encoder.layers.\1.",
        )
        rules += [
            Rule(rf"{block}attn\.in_proj_(\w+)", tuple(rf"{layer}self_attn.{part}_proj.\2" for part in "qkv"), thirds),
            Rule(rf"{block}attn\.out_proj\.(\w+)", (rf"{layer}self_attn.out_proj.\2",)),
            Rule(rf"{block}ln_([12])\.(\w+)", (rf"{layer}layer_norm\2.\3",)),
            Rule(rf"{block}mlp\.c_fc\.(\w+)", (rf"{layer}mlp.fc1.\2",)),
            Rule(rf"{block}mlp\.c_proj\.(\w+)", (rf"{layer}mlp.fc2.\2",)),
        ]
    vision, text = f"vision_model{copy}", f"text_model{copy}"
    return (
        *rules,
        Rule(rf"visual{copy}\.class_embedding", (f"{vision}.embeddings.class_embedding",)),
        Rule(rf"visual{copy}\.conv1\.weight", (f"{vision}.embeddings.patch_embedding.weight",)),
        Rule(rf"visual{copy}\.positional_embedding", (f"{vision}.embeddings.position_embedding.weight",)),
        Rule(rf"visual{copy}\.ln_pre\.(\w+)", (rf"{vision}.pre_layrnorm.\1",)),
        Rule(rf"visual{copy}\.ln_post\.(\w+)", (rf"{vision}.post_layernorm.\1",)),
        Rule(rf"visual{copy}\.proj", (f"visual_projection{copy}.weight",), transposed),
        Rule(rf"token_embedding{copy}\.weight", (f"{text}.embeddings.token_embedding.weight",)),
        Rule(rf"positional_embedding{copy}", (f"{text}.embeddings.position_embedding.weight",)),
        Rule(rf"text_projection{copy}", (f"text_projection{copy}.weight",), transposed),
    )


def clip_sizes(shapes: Shapes, head_width: int) -> dict[str, Any]:
    """Entries of a config."""
    wide, _, patch, _ = shapes["visual.conv1.weight"]
    words, narrow = shapes["token_embedding.weight"]
    vision, text = (
        {
            "hidden_size": width, "num_attention_heads": heads(width, head_width), "num_hidden_layers": layers(shapes, f"{path}.resblocks."),
            "intermediate_size": mlp_width(shapes, rf"{path}\.resblocks\.\d+\.mlp\.c_fc\.bias", width),
            "projection_dim": shapes["text_projection"][1],
        }
        for path, width in (("visual.transformer", wide), ("transformer", narrow))
    )  # fmt: skip
    vision |= {"patch_size": patch, "image_size": patch * square_side(shapes["visual.positional_embedding"][0] - 1)}
    text |= {
        "vocab_size": words, "max_position_embeddings": shapes["positional_embedding"][0], "bos_token_id": words - 2,
        "eos_token_id": words - 1, "pad_token_id": 0,
    }  # fmt: skip
    return {"vision_config": vision, "text_config": text, "projection_dim": shapes["text_projection"][1]}


class Clip(Published):
    """A CLIP with a ViT, to transformers' `CLIPModel`."""

    name = "clip"
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("logit_scale", ("logit_scale",)),
        Rule(r"ln_final\.(\w+)", (r"text_model.final_layer_norm.\1",)),
        *clip_rules(""),
    )
    left_out: ClassVar[dict[str, str]] = {
        "input_resolution|context_length|vocab_size": "a size that the shapes tell, too",
        r".+\.attn_mask": "the causal mask, which is not learned",
    }
    positions: ClassVar[dict[str, int]] = {r"visual(_m)?\.positional_embedding": 1}
    patches = "visual.conv1.weight"
    scale_follows_width = r".*\.self_attn"

    def fits(self, shapes: Shapes) -> bool:
        there = {"visual.conv1.weight", "visual.proj", "token_embedding.weight", "text_projection", "logit_scale"}
        return there <= set(shapes) and "visual_m.proj" not in shapes

    def build(self, shapes: Shapes, head_width: int) -> PreTrainedModel:
        return CLIPModel(CLIPConfig(**clip_sizes(shapes, head_width)))


class ClipRetrieval(Clip):
    """One with momentum copies and a queue, to `CLIPForRetrieval`."""

    name = "clip_retrieval"
    rules: ClassVar[tuple[Rule, ...]] = (
        *Clip.rules,
        *clip_rules("_m"),
        *QUEUES,
    )
    left_out: ClassVar[dict[str, str]] = Clip.left_out | {
        r"ln_final_m\.\w+": "the published code reads the norm of the model itself in its place",
    }

    def fits(self, shapes: Shapes) -> bool:
        return {"visual.proj", "visual_m.proj", "image_queue", "text_queue"} <= set(shapes)

    def build(self, shapes: Shapes, head_width: int) -> PreTrainedModel:
        sizes = clip_sizes(shapes, head_width)
        return CLIPForRetrieval(CLIPRetrievalConfig(**sizes, queue_size=shapes["image_queue"][1]))
