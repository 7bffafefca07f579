"""LAVIS's names of BLIP-2: what transformers' classes hold, published that way, comes back as it was."""

from __future__ import annotations

import re

import pytest
import torch
import transformers as tf
from torch import Tensor

from prunus import PrunusError
from prunus.models.convert import assembled, families, recognised
from prunus.models.convert.assembly import shapes_of

LAVIS = (
    (r"vision_model\.embeddings\.class_embedding", "visual_encoder.cls_token"),
    (r"vision_model\.embeddings\.position_embedding", "visual_encoder.pos_embed"),
    (r"vision_model\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
    (r"vision_model\.post_layernorm\.", "ln_vision."),
    (r"vision_model\.encoder\.layers\.(\d+)\.layer_norm", r"visual_encoder.blocks.\1.norm"),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection", r"visual_encoder.blocks.\1.attn.proj"),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.", r"visual_encoder.blocks.\1.attn."),
    (r"vision_model\.encoder\.layers\.(\d+)\.", r"visual_encoder.blocks.\1."),
    (r"qformer\.layernorm\.", "Qformer.bert.embeddings.LayerNorm."),
    (
        r"qformer\.encoder\.layer\.(\d+)\.(cross)?attention\.attention\.",
        r"Qformer.bert.encoder.layer.\1.\2attention.self.",
    ),
    (r"qformer\.", "Qformer.bert."),
    (r"embeddings\.", "Qformer.bert.embeddings."),
    (r"(vision|text)_projection\.", r"\1_proj."),
)
"""The start of a name in transformers → in LAVIS."""


def published(model: tf.PreTrainedModel) -> dict[str, Tensor]:
    state = {}
    for name, tensor in model.state_dict().items():
        start, end = next(((a, b) for a, b in LAVIS if re.match(a, name)), ("", ""))
        state[re.sub(f"^{start}", end.replace(r"\2", r"\g<2>"), name)] = tensor
    for name in [name for name in state if name.endswith("attn.qkv.bias")]:
        queries, keys, values = state.pop(name).chunk(3)
        assert not keys.any()
        state[name.replace("qkv.bias", "q_bias")], state[name.replace("qkv.bias", "v_bias")] = queries, values
    return state


def tiny(kind: type[tf.PreTrainedModel], texts: bool) -> tf.PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "intermediate_size": 24}
    vision = {"hidden_size": 16, "num_attention_heads": 2, "image_size": 8, "patch_size": 4, **sizes}
    qformer = {"hidden_size": 64, "num_attention_heads": 1, "encoder_hidden_size": 16, "vocab_size": 20, **sizes}
    qformer |= {"max_position_embeddings": 12, "use_qformer_text_input": texts}
    config = tf.Blip2Config(vision_config=vision, qformer_config=qformer, num_query_tokens=3, image_text_hidden_size=10)
    model = kind(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_()
            if name.endswith("qkv.bias"):
                parameter.view(3, -1)[1].zero_()
    return model


@pytest.mark.parametrize("name", ["blip2_itm", "blip2_image"])
def test_lavis_names_fill_the_class_of_transformers(name: str) -> None:
    texts = name == "blip2_itm"
    model = tiny(tf.Blip2ForImageTextRetrieval if texts else tf.Blip2VisionModelWithProjection, texts)
    state = published(model) | {"Qformer.bert.embeddings.position_ids": torch.arange(12)[None]}
    if texts:
        state |= {"temp": torch.tensor(0.07), "Qformer.cls.predictions.bias": torch.zeros(20)}
    else:
        state = {key.replace("vision_proj", "t5_proj"): tensor for key, tensor in state.items()}
        state["t5_model.shared.weight"] = torch.zeros(4, 10)
    family = recognised(shapes_of(state), "file")
    assert family.name == name
    made = assembled(family, state, head_width=8)
    assert type(made) is type(model)
    assert made.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in made.state_dict().items())
    pixels = torch.randn(2, 3, 8, 8)
    ids = {"input_ids": torch.randint(1, 20, (2, 5))} if texts else {}
    with torch.no_grad():
        found, expected = (each(pixel_values=pixels, **ids)[0] for each in (made, model))
    assert torch.equal(found, expected)


def test_a_file_without_its_image_encoder_is_refused() -> None:
    state = published(tiny(tf.Blip2ForImageTextRetrieval, True))
    state = {name: tensor for name, tensor in state.items() if not name.startswith("visual_encoder")}
    with pytest.raises(PrunusError, match="no checkpoint of blip2_itm"):
        assembled(families()["blip2_itm"], state, head_width=8)
