"""Tiny random models of every family the catalog covers, with inputs that exercise padding, images and caches."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as tf

from prunus.models import (
    BlipForImagesAndTextClassification,
    BlipForRetrievalTraining,
    BlipForVqa,
    BlipNlvrConfig,
    BlipRetrievalConfig,
    BlipVqaConfig,
    CLIPForRetrieval,
    CLIPRetrievalConfig,
    EvaVitConfig,
    EvaVitForImageClassification,
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
)

VOCABULARY = 50
IMAGE = 16
PATCH = 4
IMAGE_TOKEN = 7


@dataclass
class Case:
    """A model with inputs; `generate` holds the arguments of `generate`, None where the model cannot."""

    model: tf.PreTrainedModel
    inputs: dict[str, torch.Tensor]
    generate: dict[str, Any] | None = None
    losses: dict[str, torch.Tensor] = field(default_factory=dict)
    """Extra inputs with which the model returns a loss; empty where the sum of an output serves."""


Builder = Callable[[random.Random], Case]
FAMILIES: dict[str, Builder] = {}
WITH_EXPERTS: dict[str, Builder] = {}
"""Families whose experts lie in one parameter, for what is done to channels."""
WITH_COPIES = ("blip_retrieval", "clip_retrieval")
"""Families with momentum copies."""


def family(builder: Builder) -> Builder:
    FAMILIES[builder.__name__] = builder
    return builder


def with_experts(builder: Builder) -> Builder:
    WITH_EXPERTS[builder.__name__] = builder
    return builder


def one_half(names: Iterable[str], which: int) -> list[str]:
    """Every second family, from the first (0) or from the second (1): for properties of what the families have in common, to save time."""
    return list(names)[which::2]


def build(name: str, seed: int) -> Case:
    """The family's model at a random tiny size; every weight, bias and norm is random, so that nothing hides."""
    torch.manual_seed(seed)
    case = {**FAMILIES, **WITH_EXPERTS}[name](random.Random(seed))
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    case.model.eval()
    if case.model.can_generate():
        case.model.generation_config.eos_token_id = None
    return case


def _sizes(
    rng: random.Random, heads: tuple[int, ...] = (2, 3, 4), widths: tuple[int, ...] = (4, 6, 8)
) -> dict[str, int]:
    count, width = rng.choice(heads), rng.choice(widths)
    return {
        "hidden_size": count * width,
        "num_attention_heads": count,
        "num_hidden_layers": rng.choice((1, 2, 3)),
        "intermediate_size": rng.choice((12, 17, 24)),
    }


def _vision(rng: random.Random, **more: Any) -> dict[str, Any]:
    return {**_sizes(rng), "image_size": IMAGE, "patch_size": PATCH, **more}


def _pixels(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, IMAGE, IMAGE)


def _text(batch: int = 2, tokens: int = 7, left: bool = False) -> dict[str, torch.Tensor]:
    """Token ids with padding in the second row."""
    ids = torch.randint(10, VOCABULARY, (batch, tokens))
    mask = torch.ones_like(ids)
    mask[1, slice(0, 2) if left else slice(-2, None)] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _blip_config(rng: random.Random, one_width: bool = False) -> tf.BlipConfig:
    """`one_width`: the answer decoder reads question states through layers sized for image states."""
    vision = _vision(rng)
    text = _sizes(rng, widths=(4, 8)) | {
        "vocab_size": VOCABULARY, "encoder_hidden_size": vision["hidden_size"], "max_position_embeddings": 20,
        "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 0, "label_smoothing": 0.0,
    }  # fmt: skip
    if one_width:
        vision |= {key: text[key] for key in ("hidden_size", "num_attention_heads")}
        text["encoder_hidden_size"] = text["hidden_size"]
    return tf.BlipConfig(text_config=text, vision_config=vision, projection_dim=8, image_text_hidden_size=8)


@family
def blip_vqa(rng: random.Random) -> Case:
    text = _text()
    labels = torch.randint(10, VOCABULARY, (2, 3))
    return Case(
        tf.BlipForQuestionAnswering(_blip_config(rng, one_width=True)),
        {**text, "pixel_values": _pixels(), "decoder_input_ids": labels, "labels": labels},
        {**text, "pixel_values": _pixels(), "max_new_tokens": 4},
    )


@family
def blip_answers(rng: random.Random) -> Case:
    blip, text = _blip_config(rng, one_width=True), _text()
    config = BlipVqaConfig(
        text_config=blip.text_config.to_dict(), vision_config=blip.vision_config.to_dict(), enc_token_id=9
    )
    answers = torch.randint(10, VOCABULARY, (3, 4))
    inputs = {**text, "pixel_values": _pixels(), "decoder_input_ids": answers, "answers": torch.tensor([2, 1])}
    generate = {**text, "pixel_values": _pixels(), "max_new_tokens": 4}
    return Case(BlipForVqa(config), inputs, generate, losses={"labels": answers})


@family
def blip_caption(rng: random.Random) -> Case:
    text = _text()
    return Case(
        tf.BlipForConditionalGeneration(_blip_config(rng)),
        {**text, "pixel_values": _pixels()},
        {"pixel_values": _pixels(), "max_new_tokens": 4},
        {"labels": text["input_ids"]},
    )


@family
def blip_itm(rng: random.Random) -> Case:
    return Case(tf.BlipForImageTextRetrieval(_blip_config(rng)), {**_text(), "pixel_values": _pixels()})


@family
def blip_nlvr(rng: random.Random) -> Case:
    blip = _blip_config(rng)
    config = BlipNlvrConfig(
        text_config=blip.text_config.to_dict(), vision_config=blip.vision_config.to_dict(), enc_token_id=9,
        merge_from_layer=rng.choice((0, 1)),
    )  # fmt: skip
    inputs = {**_text(), "pixel_values": _pixels(4).unflatten(0, (2, 2))}
    return Case(BlipForImagesAndTextClassification(config), inputs, losses={"labels": torch.tensor([0, 1])})


@family
def blip_retrieval(rng: random.Random) -> Case:
    """With momentum copies, which the outputs do not depend on."""
    blip = _blip_config(rng)
    config = BlipRetrievalConfig(
        text_config=blip.text_config.to_dict(), vision_config=blip.vision_config.to_dict(), enc_token_id=9, queue_size=6,
        image_text_hidden_size=8,
    )  # fmt: skip
    return Case(BlipForRetrievalTraining(config), {**_text(), "pixel_values": _pixels()})


@family
def clip(rng: random.Random) -> Case:
    text = _sizes(rng) | {"vocab_size": VOCABULARY, "max_position_embeddings": 20, "eos_token_id": 2}
    model = tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=_vision(rng), projection_dim=8))
    return Case(model, {**_text(), "pixel_values": _pixels()})


@family
def clip_retrieval(rng: random.Random) -> Case:
    """With momentum copies."""
    text = _sizes(rng) | {"vocab_size": VOCABULARY, "max_position_embeddings": 20, "eos_token_id": 2}
    config = CLIPRetrievalConfig(text_config=text, vision_config=_vision(rng), projection_dim=8, queue_size=6)
    return Case(
        CLIPForRetrieval(config), {**_text(), "pixel_values": _pixels()}, losses={"labels": torch.tensor([4, 5])}
    )


@family
def siglip(rng: random.Random) -> Case:
    text = _sizes(rng) | {"vocab_size": VOCABULARY, "max_position_embeddings": 20}
    text["projection_size"] = 8
    vision = _vision(rng, hidden_size=8, num_attention_heads=2)
    model = tf.SiglipModel(tf.SiglipConfig(text_config=text, vision_config=vision))
    return Case(model, {**_text(), "pixel_values": _pixels()})


@family
def vit(rng: random.Random) -> Case:
    return Case(tf.ViTForImageClassification(tf.ViTConfig(**_vision(rng), num_labels=5)), {"pixel_values": _pixels()})


@family
def deit(rng: random.Random) -> Case:
    config = tf.DeiTConfig(**_vision(rng), num_labels=5)
    return Case(tf.DeiTForImageClassificationWithTeacher(config), {"pixel_values": _pixels()})


@family
def eva_vit(rng: random.Random) -> Case:
    config = EvaVitConfig(**_vision(rng), num_labels=5, mean_pooling=rng.random() < 0.5)
    return Case(
        EvaVitForImageClassification(config), {"pixel_values": _pixels()}, losses={"labels": torch.tensor([1, 4])}
    )


@family
def segmenter(rng: random.Random) -> Case:
    """Images that are no whole number of patches."""
    decoder = {"num_hidden_layers": 1, "intermediate_size": rng.choice((10, 20))}
    config = SegmenterConfig(vision_config=_vision(rng), decoder_config=decoder, num_labels=5)
    labels = torch.randint(0, 5, (2, IMAGE - 2, IMAGE))
    labels[0, :3] = config.semantic_loss_ignore_index
    pixels = _pixels()[:, :, :-2]
    return Case(SegmenterForSemanticSegmentation(config), {"pixel_values": pixels}, losses={"labels": labels})


@family
def dinov2(rng: random.Random) -> Case:
    sizes = _vision(rng)
    del sizes["intermediate_size"]
    config = tf.Dinov2Config(**sizes, mlp_ratio=rng.choice((1, 2, 3)), use_swiglu_ffn=rng.random() < 0.5)
    return Case(tf.Dinov2Model(config), {"pixel_values": _pixels()})


@family
def vilt(rng: random.Random) -> Case:
    config = tf.ViltConfig(**_vision(rng), vocab_size=VOCABULARY, max_position_embeddings=20, num_labels=5)
    mask = torch.ones(2, IMAGE, IMAGE, dtype=torch.long)
    return Case(tf.ViltForQuestionAnswering(config), {**_text(), "pixel_values": _pixels(), "pixel_mask": mask})


@family
def bert(rng: random.Random) -> Case:
    config = tf.BertConfig(**_sizes(rng), vocab_size=VOCABULARY, max_position_embeddings=20)
    return Case(tf.BertForMaskedLM(config), _text())


@family
def bert_decoder(rng: random.Random) -> Case:
    """A BERT with a causal mask and cross-attention, as in encoder-decoder models."""
    sizes = _sizes(rng)
    config = tf.BertConfig(
        **sizes, vocab_size=VOCABULARY, max_position_embeddings=20, is_decoder=True, add_cross_attention=True
    )
    memory = torch.randn(2, 5, sizes["hidden_size"])
    return Case(tf.BertLMHeadModel(config), {**_text(), "encoder_hidden_states": memory})


def _t5_config(rng: random.Random) -> tf.T5Config:
    return tf.T5Config(
        vocab_size=VOCABULARY, d_model=rng.choice((12, 16)), d_kv=rng.choice((4, 6)), d_ff=rng.choice((17, 24)),
        num_heads=rng.choice((2, 3)), num_layers=2, decoder_start_token_id=0,
        feed_forward_proj=rng.choice(("relu", "gated-gelu")),
    )  # fmt: skip


@family
def t5(rng: random.Random) -> Case:
    text = _text()
    return Case(
        tf.T5ForConditionalGeneration(_t5_config(rng)),
        {**text, "labels": torch.randint(1, VOCABULARY, (2, 4))},
        {**text, "max_new_tokens": 4},
    )


def _llama_sizes(rng: random.Random) -> dict[str, Any]:
    kv_heads = rng.choice((1, 2))
    heads = kv_heads * rng.choice((1, 2, 3))
    width = rng.choice((4, 8))
    return {
        "hidden_size": heads * width, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "num_hidden_layers": rng.choice((1, 2)), "intermediate_size": rng.choice((17, 24)),
        "vocab_size": VOCABULARY, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip


def _causal(model: tf.PreTrainedModel) -> Case:
    text = _text(left=True)
    return Case(model, text, {**text, "max_new_tokens": 4}, {"labels": text["input_ids"]})


@family
def llama(rng: random.Random) -> Case:
    bias = rng.random() < 0.5
    return _causal(tf.LlamaForCausalLM(tf.LlamaConfig(**_llama_sizes(rng), attention_bias=bias, mlp_bias=bias)))


@family
def mistral(rng: random.Random) -> Case:
    return _causal(tf.MistralForCausalLM(tf.MistralConfig(**_llama_sizes(rng), sliding_window=4)))


@family
def qwen2(rng: random.Random) -> Case:
    return _causal(tf.Qwen2ForCausalLM(tf.Qwen2Config(**_llama_sizes(rng))))


@family
def phi3(rng: random.Random) -> Case:
    """Queries, keys and values in one layer, gate and up in another; heads that are rotated in part, or whole."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": rng.choice((0.5, 1.0))}
    return _causal(tf.Phi3ForCausalLM(tf.Phi3Config(**_llama_sizes(rng), rope_parameters=rope)))


@family
def gpt2(rng: random.Random) -> Case:
    """`Conv1D` throughout, with queries, keys and values in one."""
    config = tf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=rng.choice((8, 12)), n_head=rng.choice((2, 4)), n_layer=2, n_positions=64,
        n_inner=rng.choice((17, 24)), pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return _causal(tf.GPT2LMHeadModel(config))


@family
def falcon(rng: random.Random) -> Case:
    """Heads in groups, a few queries with their key and their value; the scale follows the current width."""
    sizes = _llama_sizes(rng)
    config = tf.FalconConfig(
        vocab_size=VOCABULARY, hidden_size=sizes["hidden_size"], num_attention_heads=sizes["num_attention_heads"],
        num_kv_heads=sizes["num_key_value_heads"], num_hidden_layers=2, ffn_hidden_size=sizes["intermediate_size"],
        new_decoder_architecture=True, alibi=False, bias=rng.random() < 0.5, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return _causal(tf.FalconForCausalLM(config))


@family
def modernbert(rng: random.Random) -> Case:
    """Everything fused, and a scale that follows the current width."""
    config = tf.ModernBertConfig(
        **_sizes(rng), vocab_size=VOCABULARY, max_position_embeddings=64, pad_token_id=0, cls_token_id=1, sep_token_id=2,
        local_attention=4,
    )  # fmt: skip
    return Case(tf.ModernBertForMaskedLM(config), _text())


@family
def bart(rng: random.Random) -> Case:
    """MLPs that lie in the blocks, beside attentions over two sequences."""
    config = tf.BartConfig(
        vocab_size=VOCABULARY, d_model=rng.choice((8, 12)), encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=rng.choice((2, 4)), encoder_ffn_dim=17, decoder_ffn_dim=24, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    text = _text()
    inputs = {**text, "labels": torch.randint(1, VOCABULARY, (2, 4))}
    return Case(tf.BartForConditionalGeneration(config), inputs, {**text, "max_new_tokens": 4, "num_beams": 1})


@with_experts
def mixtral(rng: random.Random) -> Case:
    """Experts in one parameter, whose channels are those of all of them."""
    sizes = _llama_sizes(rng) | {"intermediate_size": rng.choice((16, 24))}  # kernels want rows of whole 16 bytes
    return _causal(tf.MixtralForCausalLM(tf.MixtralConfig(**sizes, num_local_experts=3)))


@with_experts
def gpt_oss(rng: random.Random) -> Case:
    """Experts that store inputs before outputs, gates and ups in turns, and biases; sinks."""
    sizes = _llama_sizes(rng) | {"intermediate_size": rng.choice((16, 24))}
    config = tf.GptOssConfig(**sizes, head_dim=4, num_local_experts=3, num_experts_per_tok=2, sliding_window=4)
    return _causal(tf.GptOssForCausalLM(config))


@family
def opt(rng: random.Random) -> Case:
    sizes = _sizes(rng)
    config = tf.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=sizes["hidden_size"], ffn_dim=sizes["intermediate_size"],
        num_hidden_layers=2, num_attention_heads=sizes["num_attention_heads"], max_position_embeddings=64,
        word_embed_proj_dim=sizes["hidden_size"], pad_token_id=1,
    )  # fmt: skip
    return _causal(tf.OPTForCausalLM(config))


def _image_and_text(model: tf.PreTrainedModel, places: int, **more: torch.Tensor) -> Case:
    """One image a row, on `places` placeholder tokens in the middle of the text."""
    text = _text(tokens=6, left=True)
    images = torch.full((2, places), IMAGE_TOKEN)
    inputs = {
        "input_ids": torch.cat([text["input_ids"][:, :3], images, text["input_ids"][:, 3:]], 1),
        "attention_mask": torch.cat([text["attention_mask"][:, :3], torch.ones_like(images), text["attention_mask"][:, 3:]], 1),
        "pixel_values": _pixels(),
        **more,
    }  # fmt: skip
    return Case(model, inputs, {**inputs, "max_new_tokens": 4, "suppress_tokens": [IMAGE_TOKEN]})


@family
def llava(rng: random.Random) -> Case:
    vision = tf.CLIPVisionConfig(**_vision(rng, num_hidden_layers=3))
    config = tf.LlavaConfig(
        vision_config=vision, text_config=tf.LlamaConfig(**_llama_sizes(rng)), image_token_index=IMAGE_TOKEN
    )
    return _image_and_text(tf.LlavaForConditionalGeneration(config), (IMAGE // PATCH) ** 2)


QUERIES = 3


def _blip2_parts(rng: random.Random, language: tf.PretrainedConfig) -> dict[str, Any]:
    vision = _vision(rng)
    qformer = _sizes(rng) | {
        "encoder_hidden_size": vision["hidden_size"], "vocab_size": VOCABULARY, "max_position_embeddings": 20,
        "cross_attention_frequency": 2,
    }  # fmt: skip
    return {
        "vision_config": vision, "qformer_config": qformer, "text_config": language.to_dict(),
        "num_query_tokens": QUERIES, "image_token_index": IMAGE_TOKEN,
    }  # fmt: skip


def _queries_and_text(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    text = _text()
    images = torch.full((2, QUERIES), IMAGE_TOKEN)
    return {
        "input_ids": torch.cat([images, text["input_ids"]], 1),
        "attention_mask": torch.cat([torch.ones_like(images), text["attention_mask"]], 1),
        "pixel_values": _pixels(),
        **more,
    }


@family
def blip2_opt(rng: random.Random) -> Case:
    language = tf.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=16, ffn_dim=20, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, word_embed_proj_dim=16, pad_token_id=1,
    )  # fmt: skip
    inputs = _queries_and_text()
    model = tf.Blip2ForConditionalGeneration(tf.Blip2Config(**_blip2_parts(rng, language)))
    return Case(model, inputs, {**inputs, "max_new_tokens": 4})


@family
def blip2_t5(rng: random.Random) -> Case:
    inputs = _queries_and_text()
    model = tf.Blip2ForConditionalGeneration(tf.Blip2Config(**_blip2_parts(rng, _t5_config(rng))))
    labels = torch.randint(1, VOCABULARY, (2, 4))
    return Case(model, {**inputs, "labels": labels}, {**inputs, "max_new_tokens": 4})


@family
def instructblip_t5(rng: random.Random) -> Case:
    question = _text(tokens=5)
    inputs = _queries_and_text(
        qformer_input_ids=question["input_ids"], qformer_attention_mask=question["attention_mask"]
    )
    config = tf.InstructBlipConfig(**_blip2_parts(rng, _t5_config(rng)))
    model = tf.InstructBlipForConditionalGeneration(config)
    labels = torch.randint(1, VOCABULARY, (2, 4))
    return Case(model, {**inputs, "labels": labels}, {**inputs, "max_new_tokens": 4})


@family
def instructblip_llama(rng: random.Random) -> Case:
    question = _text(tokens=5)
    inputs = _queries_and_text(
        qformer_input_ids=question["input_ids"], qformer_attention_mask=question["attention_mask"]
    )
    parts = _blip2_parts(rng, tf.LlamaConfig(**_llama_sizes(rng)))
    model = tf.InstructBlipForConditionalGeneration(tf.InstructBlipConfig(**parts))
    return Case(model, inputs, {**inputs, "max_new_tokens": 4})


def _qwen_inputs() -> dict[str, torch.Tensor]:
    patches = (IMAGE // PATCH) ** 2
    images = torch.full((1, patches // 4), IMAGE_TOKEN)
    text = torch.randint(10, 40, (1, 6))
    ids = torch.cat([text[:, :2], torch.tensor([[5]]), images, text[:, 2:]], 1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(patches, 3 * 2 * PATCH * PATCH),
        "image_grid_thw": torch.tensor([[1, IMAGE // PATCH, IMAGE // PATCH]]),
        "mm_token_type_ids": (ids == IMAGE_TOKEN).long(),
    }


def _qwen_text(rng: random.Random) -> dict[str, Any]:
    sizes = _llama_sizes(rng) | {"bos_token_id": None}
    sizes["hidden_size"] = 8 * sizes["num_attention_heads"]
    return sizes | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}


def _qwen_tokens() -> dict[str, int]:
    return {"image_token_id": IMAGE_TOKEN, "video_token_id": 8, "vision_start_token_id": 5, "vision_end_token_id": 6}


@family
def qwen2_vl(rng: random.Random) -> Case:
    text = _qwen_text(rng)
    vision = {
        "depth": 2, "embed_dim": 16, "num_heads": 2, "hidden_size": text["hidden_size"], "mlp_ratio": 2,
        "patch_size": PATCH, "temporal_patch_size": 2, "spatial_merge_size": 2,
    }  # fmt: skip
    config = tf.Qwen2VLConfig(text_config=text, vision_config=vision, **_qwen_tokens())
    inputs = _qwen_inputs()
    return Case(tf.Qwen2VLForConditionalGeneration(config), inputs, {**inputs, "max_new_tokens": 4})


@family
def qwen2_5_vl(rng: random.Random) -> Case:
    text = _qwen_text(rng)
    vision = {
        "depth": 2, "hidden_size": 16, "num_heads": 2, "out_hidden_size": text["hidden_size"], "intermediate_size": 20,
        "patch_size": PATCH, "temporal_patch_size": 2, "spatial_merge_size": 2, "window_size": 8,
        "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = tf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_qwen_tokens())
    inputs = _qwen_inputs()
    return Case(tf.Qwen2_5_VLForConditionalGeneration(config), inputs, {**inputs, "max_new_tokens": 4})


# Families that the catalog does not name: their MLPs and attentions are found by trial.

LEFT_DENSE = {
    "blip_nlvr": {"BlipNlvrCrossOutput"},  # its merge layers
    "siglip": {"MultiheadAttention"},
    "dinov2": {"Dinov2SwiGLUFFN"},  # one fused layer in transformers 5.17
    "swin": {"SwinRelativePositionBias", "SwinPatchMerging"},
    "beit": {"BeitRelativePositionBias"},
    "siglip2_vision": {"MultiheadAttention"},
    "paligemma": {"MultiheadAttention"},
}
"""Family → types of the modules in which `anatomy` leaves matrices dense."""


@family
def qwen3(rng: random.Random) -> Case:
    return _causal(tf.Qwen3ForCausalLM(tf.Qwen3Config(**_llama_sizes(rng), head_dim=rng.choice((4, 8)))))


@family
def gemma2(rng: random.Random) -> Case:
    config = tf.Gemma2Config(**_llama_sizes(rng), head_dim=4, query_pre_attn_scalar=4, sliding_window=4)
    return _causal(tf.Gemma2ForCausalLM(config))


@family
def phi(rng: random.Random) -> Case:
    return _causal(tf.PhiForCausalLM(tf.PhiConfig(**_llama_sizes(rng))))


@family
def olmo(rng: random.Random) -> Case:
    return _causal(tf.OlmoForCausalLM(tf.OlmoConfig(**_llama_sizes(rng), clip_qkv=rng.choice((None, 1.0)))))


@family
def swin(rng: random.Random) -> Case:
    config = tf.SwinConfig(
        image_size=IMAGE, patch_size=2, embed_dim=8, depths=(2, 1), num_heads=(2, 4), window_size=4,
        mlp_ratio=rng.choice((2.0, 2.5)), num_labels=5,
    )  # fmt: skip
    return Case(tf.SwinForImageClassification(config), {"pixel_values": _pixels()})


@family
def beit(rng: random.Random) -> Case:
    config = tf.BeitConfig(**_vision(rng), num_labels=5, use_relative_position_bias=rng.random() < 0.5)
    return Case(tf.BeitForImageClassification(config), {"pixel_values": _pixels()})


@family
def siglip2_vision(rng: random.Random) -> Case:
    """Images of different shapes, as patches; the second has fewer of them."""
    config = tf.Siglip2VisionConfig(**_sizes(rng), patch_size=PATCH, num_patches=16)
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[1, 12:] = 0
    shapes = torch.tensor([[4, 4], [3, 4]])
    pixels = torch.randn(2, 16, 3 * PATCH**2)
    inputs = {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shapes}
    return Case(tf.Siglip2VisionModel(config), inputs)


@family
def paligemma(rng: random.Random) -> Case:
    text = tf.GemmaConfig(**_llama_sizes(rng), head_dim=4)
    vision = tf.SiglipVisionConfig(**_vision(rng), vision_use_head=False)
    config = tf.PaliGemmaConfig(
        vision_config=vision, text_config=text, projection_dim=text.hidden_size, hidden_size=text.hidden_size,
        image_token_index=IMAGE_TOKEN, vocab_size=VOCABULARY,
    )  # fmt: skip
    return _image_and_text(tf.PaliGemmaForConditionalGeneration(config), (IMAGE // PATCH) ** 2)


def _shuffled(rng: random.Random, config: type, model: type) -> Case:
    """Idefics 3 and SmolVLM: four patches become one place; images come as (batch, images, …)."""
    sizes = {"vision_config": _vision(rng), "text_config": tf.LlamaConfig(**_llama_sizes(rng))}
    built = model(config(**sizes, image_token_id=IMAGE_TOKEN, scale_factor=2, pad_token_id=0))
    return _image_and_text(built, (IMAGE // PATCH) ** 2 // 4, pixel_values=_pixels()[:, None])


@family
def idefics3(rng: random.Random) -> Case:
    return _shuffled(rng, tf.Idefics3Config, tf.Idefics3ForConditionalGeneration)


@family
def smolvlm(rng: random.Random) -> Case:
    return _shuffled(rng, tf.SmolVLMConfig, tf.SmolVLMForConditionalGeneration)


@family
def internvl(rng: random.Random) -> Case:
    vision = tf.InternVLVisionConfig(**_vision(rng) | {"image_size": [IMAGE] * 2, "patch_size": [PATCH] * 2})
    config = tf.InternVLConfig(
        vision_config=vision, text_config=tf.Qwen2Config(**_llama_sizes(rng)), image_token_id=IMAGE_TOKEN
    )
    return _image_and_text(tf.InternVLForConditionalGeneration(config), (IMAGE // PATCH) ** 2 // 4)
