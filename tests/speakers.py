"""Folders of tiny random models that speak about images, each with the processor of its family, and small data for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

from prunus.models import BlipForVqa, BlipVqaConfig

SPECIAL = [
    "<pad>", "<s>", "</s>", "<unk>", "<image>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
    "<start_of_image>", "<end_of_image>", "<image_soft_token>", "<end_of_utterance>", "<fake_token_around_image>", "<global-img>",
    "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>",
]  # fmt: skip
VOCABULARY = 300
SIDE, PATCH = 16, 4
TURNS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() }}: "
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% if m['role'] == 'user' %} {% else %}</s>{% endif %}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<start_of_image>{% else %}{{ c['text'] | trim }}{% endif %}{% endfor %}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def tokenizer(begins: bool = True, ends: bool = False, **special: str) -> Any:
    """One token a byte, behind the special ones."""
    vocabulary = {word: place for place, word in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    made = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    frame = f"{'<s> ' if begins else ''}$A{' </s>' if ends else ''}"
    made.post_processor = TemplateProcessing(single=frame, special_tokens=[("<s>", 1), ("</s>", 2)])
    others = {"extra_special_tokens": special} if special else {}
    made.add_special_tokens(SPECIAL)
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>", **others
    )


def sizes(**more: Any) -> dict[str, Any]:
    return {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24, **more}


def words(**more: Any) -> dict[str, Any]:
    return sizes(
        num_key_value_heads=1, vocab_size=VOCABULARY, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0, **more
    )  # fmt: skip


def vision(**more: Any) -> dict[str, Any]:
    return sizes(image_size=SIDE, patch_size=PATCH, **more)


Made = tuple[Any, Any, Any, dict[str, Any], str | None]
"""Model, tokenizer, image processor, entries of the processor's config, chat template."""
SPEAKERS: dict[str, Callable[[], Made]] = {}


def speaker(make: Callable[[], Made]) -> Callable[[], Made]:
    SPEAKERS[make.__name__] = make
    return make


def blip_pixels() -> Any:
    return BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})


def blip2_parts(language: Any) -> dict[str, Any]:
    qformer = sizes(
        encoder_hidden_size=16, vocab_size=VOCABULARY, max_position_embeddings=200, cross_attention_frequency=2
    )
    return {
        "vision_config": vision(), "qformer_config": qformer, "text_config": language.to_dict(), "num_query_tokens": 3,
        "image_token_index": 4,
    }  # fmt: skip


def t5() -> Any:
    return tf.T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_heads=2,
        num_layers=2,
        decoder_start_token_id=0,
        eos_token_id=2,
    )


@speaker
def blip2_t5() -> Made:
    model = tf.Blip2ForConditionalGeneration(tf.Blip2Config(**blip2_parts(t5())))
    entries = {"processor_class": "Blip2Processor", "num_query_tokens": 3}
    return model, tokenizer(begins=False, ends=True), blip_pixels(), entries, None


@speaker
def blip2_opt() -> Made:
    opt = tf.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=512,
        word_embed_proj_dim=16, pad_token_id=0, eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    model = tf.Blip2ForConditionalGeneration(tf.Blip2Config(**blip2_parts(opt)))
    return model, tokenizer(), blip_pixels(), {"processor_class": "Blip2Processor", "num_query_tokens": 3}, None


@speaker
def instructblip_t5() -> Made:
    model = tf.InstructBlipForConditionalGeneration(tf.InstructBlipConfig(**blip2_parts(t5())))
    entries = {"processor_class": "InstructBlipProcessor", "num_query_tokens": 3}
    return model, tokenizer(begins=False, ends=True), blip_pixels(), entries, None


@speaker
def instructblip_vicuna() -> Made:
    model = tf.InstructBlipForConditionalGeneration(tf.InstructBlipConfig(**blip2_parts(tf.LlamaConfig(**words()))))
    return model, tokenizer(), blip_pixels(), {"processor_class": "InstructBlipProcessor", "num_query_tokens": 3}, None


@speaker
def llava() -> Made:
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**vision()), text_config=tf.LlamaConfig(**words()), image_token_index=4
    )
    pixels = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    entries = {
        "processor_class": "LlavaProcessor", "patch_size": PATCH, "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1, "image_token": "<image>",
    }  # fmt: skip
    return tf.LlavaForConditionalGeneration(config), tokenizer(), pixels, entries, VICUNA


def qwen_parts() -> tuple[dict[str, Any], dict[str, int], Any]:
    text = words(rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]})
    tokens = {"image_token_id": 7, "video_token_id": 8, "vision_start_token_id": 5, "vision_end_token_id": 6}
    area = {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE * 4}
    return text, tokens, Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=2, size=area)


QWEN = TURNS.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")


@speaker
def qwen2_vl() -> Made:
    text, tokens, pixels = qwen_parts()
    see = {
        "depth": 2,
        "embed_dim": 16,
        "num_heads": 2,
        "hidden_size": 16,
        "mlp_ratio": 2,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
    }
    model = tf.Qwen2VLForConditionalGeneration(tf.Qwen2VLConfig(text_config=text, vision_config=see, **tokens))
    return model, tokenizer(False), pixels, {"processor_class": "Qwen2VLProcessor"}, QWEN


@speaker
def qwen2_5_vl() -> Made:
    text, tokens, pixels = qwen_parts()
    see = {
        "depth": 2, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 16, "intermediate_size": 20, "patch_size": PATCH,
        "spatial_merge_size": 2, "window_size": 8, "fullatt_block_indexes": [1],
    }  # fmt: skip
    model = tf.Qwen2_5_VLForConditionalGeneration(tf.Qwen2_5_VLConfig(text_config=text, vision_config=see, **tokens))
    return model, tokenizer(False), pixels, {"processor_class": "Qwen2_5_VLProcessor"}, QWEN


@speaker
def smolvlm() -> Made:
    config = tf.SmolVLMConfig(
        vision_config=vision(), text_config=tf.LlamaConfig(**words()), image_token_id=4, scale_factor=2, pad_token_id=0
    )
    pixels = SmolVLMImageProcessorPil(
        size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False
    )
    special = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
    }
    entries = {"processor_class": "SmolVLMProcessor", "image_seq_len": 4}
    template = TURNS.replace("IMAGE", "<image>").replace("<|im_end|>", "<end_of_utterance>")
    return tf.SmolVLMForConditionalGeneration(config), tokenizer(False, **special), pixels, entries, template


@speaker
def paligemma() -> Made:
    text = tf.GemmaConfig(**words() | {"vocab_size": 1600}, head_dim=8)
    config = tf.PaliGemmaConfig(
        vision_config=tf.SiglipVisionConfig(**vision(), vision_use_head=False), text_config=text, projection_dim=16, hidden_size=16,
        image_token_index=4, vocab_size=1600,
    )  # fmt: skip
    pixels = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    pixels.image_seq_length = 16
    entries = {"processor_class": "PaliGemmaProcessor"}
    return tf.PaliGemmaForConditionalGeneration(config), tokenizer(image_token="<image>"), pixels, entries, None


@speaker
def gemma3() -> Made:
    text = tf.Gemma3TextConfig(**words(), head_dim=8, sliding_window=16, query_pre_attn_scalar=8)
    config = tf.Gemma3Config(
        vision_config=tf.SiglipVisionConfig(**vision(), vision_use_head=False), text_config=text, mm_tokens_per_image=4,
        image_token_index=11, boi_token_index=9, eoi_token_index=10,
    )  # fmt: skip
    pixels = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE})
    special = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    entries = {"processor_class": "Gemma3Processor", "image_seq_length": 4}
    return tf.Gemma3ForConditionalGeneration(config), tokenizer(**special), pixels, entries, GEMMA


def blip_config(cls: type = tf.BlipConfig, **more: Any) -> Any:
    """Answers and captions begin with token 15, and end with token 2."""
    text = sizes(
        vocab_size=VOCABULARY, encoder_hidden_size=16, max_position_embeddings=200, bos_token_id=15, eos_token_id=2, sep_token_id=2,
        pad_token_id=0, label_smoothing=0.0, num_hidden_layers=1,
    )  # fmt: skip
    return cls(text_config=text, vision_config=vision(), projection_dim=8, image_text_hidden_size=8, **more)


@speaker
def blip_answers() -> Made:
    return tf.BlipForQuestionAnswering(blip_config()), tokenizer(ends=True), blip_pixels(), {}, None


@speaker
def blip_all_answers() -> Made:
    model = BlipForVqa(blip_config(BlipVqaConfig, enc_token_id=16))
    return model, tokenizer(ends=True), blip_pixels(), {}, None


@speaker
def blip_captions() -> Made:
    return tf.BlipForConditionalGeneration(blip_config()), tokenizer(ends=True), blip_pixels(), {}, None


@speaker
def vilt() -> Made:
    names = ["red", "green", "blue", "black", "yes", "no"]
    config = tf.ViltConfig(
        **vision(), vocab_size=VOCABULARY, max_position_embeddings=200, id2label=dict(enumerate(names)),
        label2id={name: place for place, name in enumerate(names)},
    )  # fmt: skip
    pixels = ViltImageProcessorPil(size={"shortest_edge": SIDE}, size_divisor=PATCH)
    return tf.ViltForQuestionAnswering(config), tokenizer(ends=True), pixels, {"processor_class": "ViltProcessor"}, None


def save(name: str, folder: Path, seed: int = 0) -> Path:
    """The folder of a tiny model of a family, as such models are published: weights, tokenizer, configs, chat template."""
    torch.manual_seed(seed)
    model, spoken, pixels, entries, template = SPEAKERS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    spoken.save_pretrained(folder)
    pixels.save_pretrained(folder)
    if entries.get("processor_class") == "InstructBlipProcessor":
        tokenizer(begins=False).save_pretrained(folder / "qformer_tokenizer")
    if entries:
        (folder / "processor_config.json").write_text(json.dumps(entries))
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder


COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "white": (240, 240, 240)}


def pictures(folder: Path, rows: int = 8) -> Path:
    """A folder of images of one colour, of several sizes and formats, and `rows.jsonl` with questions, answers, captions and chats."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in range(rows):
        color = list(COLORS)[row % len(COLORS)]
        pixels = np.full((SIDE + 5 * (row % 3), SIDE + 9 * (row % 2), 3), COLORS[color], np.uint8)
        name = f"{row}-{color}.{'png' if row % 2 else 'jpg'}"
        Image.fromarray(pixels).save(folder / name)
        question = f"Which colour is it{' here' if row % 2 else ''}?"
        lines.append({
            "image": name, "question_id": row, "question": question, "answers": [color] * 7 + ["black"] * 3,
            "captions": [f"a {color} square", f"all is {color}"],
            "messages": [
                {"role": "user", "content": question}, {"role": "assistant", "content": color},
                {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."},
            ],
        })  # fmt: skip
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    return file
