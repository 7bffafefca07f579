"""LAVIS's names of BLIP-2 and InstructBLIP: what transformers' classes hold, published that way, comes back as it was."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers as tf
from torch import Tensor

from prunus import PrunusError, anatomy, extract, load_model
from prunus.models import Blip2Images, InstructBlipImages
from prunus.models.convert import assembled, convert, recognised
from prunus.models.convert.assembly import shapes_of
from tests.test_equivalence import masked, random_plan

LAVIS = (
    (r"vision_model\.embeddings\.class_embedding", "visual_encoder.cls_token"),
    (r"vision_model\.embeddings\.position_embedding", "visual_encoder.pos_embed"),
    (r"vision_model\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
    (r"vision_model\.post_layernorm\.", "ln_vision."),
    (r"vision_model\.encoder\.layers\.(\d+)\.layer_norm", r"visual_encoder.blocks.\1.norm"),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection", r"visual_encoder.blocks.\1.attn.proj"),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.", r"visual_encoder.blocks.\1.attn."),
    (r"vision_model\.encoder\.layers\.(\d+)\.", r"visual_encoder.blocks.\1."),
    (r"qformer\.embeddings\.layernorm\.", "Qformer.bert.embeddings.LayerNorm."),
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


def tiny(name: str) -> tf.PreTrainedModel:
    """What transformers has for a family, with a language model where it has that, at a tiny size."""
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "intermediate_size": 24}
    vision = {"hidden_size": 16, "num_attention_heads": 2, "image_size": 8, "patch_size": 4, **sizes}
    qformer = {"hidden_size": 64, "num_attention_heads": 1, "encoder_hidden_size": 16, "vocab_size": 20, **sizes}
    qformer["max_position_embeddings"] = 12
    parts = {"vision_config": vision, "qformer_config": qformer, "num_query_tokens": 3}
    language = {"model_type": "t5", "d_model": 10, "num_layers": 1, "d_ff": 8, "vocab_size": 9}
    if name == "blip2_itm":
        qformer["use_qformer_text_input"] = True
        model = tf.Blip2ForImageTextRetrieval(tf.Blip2Config(**parts, image_text_hidden_size=10))
    elif name == "blip2_image":
        model = tf.Blip2ForConditionalGeneration(tf.Blip2Config(**parts, text_config=language))
    else:
        model = tf.InstructBlipForConditionalGeneration(tf.InstructBlipConfig(**parts, text_config=language))
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            parameter.normal_()
            if path.endswith("qkv.bias"):
                parameter.view(3, -1)[1].zero_()
    return model.eval()


def test_lavis_names_fill_the_class_of_transformers() -> None:
    model = tiny("blip2_itm")
    state = published(model) | {"Qformer.bert.embeddings.position_ids": torch.arange(12)[None]}
    state |= {"temp": torch.tensor(0.07), "Qformer.cls.predictions.bias": torch.zeros(20)}
    family = recognised(shapes_of(state), "file")
    assert family.name == "blip2_itm"
    made = assembled(family, state, head_width=8)
    assert type(made) is tf.Blip2ForImageTextRetrieval
    assert made.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in made.state_dict().items())
    given = {"pixel_values": torch.randn(2, 3, 8, 8), "input_ids": torch.randint(1, 20, (2, 5))}
    with torch.no_grad():
        assert torch.equal(made(**given)[0], model(**given)[0])


@pytest.mark.parametrize(
    ("name", "projection", "kind"),
    [
        ("blip2_image", "t5", Blip2Images), ("blip2_image", "opt", Blip2Images),
        ("instructblip_image", "t5", InstructBlipImages), ("instructblip_image", "llm", InstructBlipImages),
    ],
)  # fmt: skip
def test_lavis_names_give_what_the_language_model_reads(
    name: str, projection: str, kind: type[tf.PreTrainedModel], tmp_path: Path
) -> None:
    model = tiny(name)
    state = {
        key.replace("language_projection", f"{projection}_proj").replace(
            "language_model", f"{projection}_model"
        ): tensor
        for key, tensor in published(model).items()
    }
    torch.save({"model": state}, tmp_path / "published.pth")
    made = convert(tmp_path / "published.pth", tmp_path / "out", head_width=8)
    assert type(made) is kind
    assert made.state_dict().keys() == {key for key in model.state_dict() if not key.startswith("language_model")}
    given = {"pixel_values": torch.randn(2, 3, 8, 8)}
    if name == "instructblip_image":
        given["qformer_input_ids"] = torch.randint(1, 20, (2, 5))
        given["qformer_attention_mask"] = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        expected = model.get_image_features(**given).pooler_output
        assert expected.shape == (2, 3, 10)
        for each in (made, load_model(tmp_path / "out"), tf.AutoModel.from_pretrained(tmp_path / "out").eval()):
            assert type(each) is kind
            assert torch.equal(each(**given).pooler_output, expected)
    model.language_projection.reset_parameters()
    missing, unexpected = model.load_state_dict(made.state_dict(), strict=False)
    assert not unexpected
    assert all(key.startswith("language_model") for key in missing)
    assert {part.tower for part in anatomy(made)} == {"vision", "connector"}
    plan = random_plan(made, 1)
    small = extract(made, plan)
    masked(made, plan)
    with torch.no_grad():
        torch.testing.assert_close(small(**given).pooler_output, made(**given).pooler_output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["blip2_itm", "blip2_image", "instructblip_image"])
def test_a_file_without_its_image_encoder_says_where_that_is(name: str) -> None:
    state = {
        key.replace("language_", "t5_").replace("projection", "proj"): tensor
        for key, tensor in published(tiny(name)).items()
    }
    state = {key: tensor for key, tensor in state.items() if not key.startswith("visual_encoder")}
    family = recognised(shapes_of(state), "file")
    assert family.name == name
    with pytest.raises(PrunusError, match="no image encoder in it: LAVIS publishes that apart"):
        assembled(family, state, head_width=8)
