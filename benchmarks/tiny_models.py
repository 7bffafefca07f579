"""A tiny random model, with inputs, of nearly every model type that transformers has.

Sizes are set by the names of config fields, through all sub-configs; inputs follow from the forward's signature and are
tried until one passes. What is done with the model is another matter: see `benchmarks.disk_sweep`.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from transformers.models.auto import modeling_auto as auto

VOCABULARY, IMAGE, PATCH, MELS, FRAMES, TOKENS = 120, 32, 8, 16, 64, 8

WIDTH = {
    r"hidden_size|d_model|n_embd|dim|embed_dim|embedding_size|hidden_dim|encoder_hidden_size|decoder_hidden_size": 32,
    r"word_embed_proj_dim|embedding_dim|emb_dim|encoder_embed_dim|decoder_embed_dim|out_hidden_size|lm_hidden_size": 32,
    r"projection_dim|projection_size|output_dim|proj_dim|text_embed_dim|dense_size|cross_attention_hidden_size": 32,
    r"vision_hidden_size|text_hidden_size|mm_hidden_size|audio_hidden_size|image_text_hidden_size|d_embed": 32,
    r"(.*_)?(num_)?(attention_)?heads|n_heads?|num_head|(.*_)?num_attention_heads|n_head": 4,
    r"(.*_)?num_key_value_heads|num_kv_heads|n_kv_heads|num_key_value_groups": 2,
    r"(.*_)?head_dim|d_kv|d_head|kv_channels|attention_head_size": 8,
    r"(.*_)?num_hidden_layers|n_layers?|(.*_)?num_layers|(encoder|decoder)_layers|depth|num_decoder_layers|num_encoder_layers": 2,
    r"(.*_)?intermediate_size|d_ff|ffn_dim|(.*_)?ffn_dim|ffn_hidden_size|dim_feedforward|mlp_dim|d_inner|n_inner|hidden_dim_ffn": 48,
    r"(.*_)?vocab_size|entity_vocab_size|vocab_size_per_layer_input": VOCABULARY,
    r"hidden_size_per_layer_input": 8,
    r"max_position_embeddings|n_positions|max_sequence_length|max_seq_len|block_size|max_source_positions|max_target_positions": 64,
    r"(.*_)?image_size|img_size|input_size": IMAGE,
    r"patch_size|(encoder_)?patch_size": PATCH,
    r"(num|n)_(local_|routed_)?experts|moe_num_experts|num_local_experts|n_routed_experts": 4,
    r"num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts|num_experts_per_token|experts_per_token": 2,
    r"moe_intermediate_size|shared_expert_intermediate_size|expert_ffn_size|moe_ffn_hidden_size": 24,
    r"n_group|topk_group|n_groups": 1,
    r"q_lora_rank|kv_lora_rank": 16,
    r"qk_rope_head_dim|qk_nope_head_dim|v_head_dim|qk_head_dim": 8,
    r"first_k_dense_replace": 1,
    r"num_mel_bins|feature_size|n_mels|mel_bins": MELS,
    r"num_queries|num_query_tokens|num_latents|resampler_n_latents": 4,
    r"spatial_merge_size|temporal_patch_size": 2,
    r"num_labels": 3,
    r"window_size": 4,
    r"base_channels|codebook_size": 32,
    r"num_nextn_predict_layers|mtp_num_layers|num_kv_shared_layers": 0,
    r"num_frames|latent_query_num": 4,
    r"rotary_dim": 4,
}  # fmt: skip
PATTERNS = {re.compile(pattern): size for pattern, size in WIDTH.items()}
TOKENS_OF = {"pad": 0, "bos": 1, "eos": 2, "decoder_start": 0, "unk": 3, "mask": 4, "sep": 2, "cls": 1}
PLACEHOLDER = 7
LARGEST = 40_000_000
"""Parameters of a model that counts as tiny; above, some size has a name that is not known here."""
RESNET = {
    "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1],
    "out_features": ["stage4"], "layer_type": "basic",
}  # fmt: skip
TASKS = (
    auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, auto.MODEL_MAPPING_NAMES, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)  # fmt: skip


@dataclass
class Tiny:
    model: tf.PreTrainedModel
    inputs: dict[str, Any]


class UnbuildableError(Exception):
    """The generic builder finds no config or no inputs that pass."""


def model_types() -> list[str]:
    """Those with a model of their own, in the library's order."""
    return [name for name in tf.CONFIG_MAPPING if any(name in task for task in TASKS)]


def build(model_type: str, seed: int = 0) -> Tiny:
    """The model in eval mode, with every weight random, and inputs that its forward takes.

    Raises:
        UnbuildableError: no attempt passes; with the last error.
    """
    errors: list[Exception | str] = []
    for name in dict.fromkeys(task[model_type] for task in TASKS if model_type in task):
        cls = getattr(tf, name[0] if isinstance(name, tuple | list) else name, None)
        if cls is None:
            continue
        try:
            torch.manual_seed(seed)
            config = tiny_config(tf.CONFIG_MAPPING[model_type])
            model = cls(config).eval()
        except Exception as error:
            errors.append(error)
            continue
        if size_of(model) > LARGEST:
            errors.append(f"{size_of(model)} parameters")
            continue
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        for inputs in attempts(model):
            passed = settle(model, inputs)
            if isinstance(passed, dict):
                return Tiny(model, passed)
            errors.append(passed)
    raise UnbuildableError("; ".join(f"{type(e).__name__}: {e}" for e in errors[:1] or ["it has no model"])[:300])


def settle(model: tf.PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any] | Exception:
    """The inputs, with as many placeholders for images as the model asks for; or the error."""
    for _ in range(3):
        try:
            with torch.no_grad():
                torch.manual_seed(0)
                model(**inputs)
            return inputs
        except Exception as error:
            numbers = re.search(r"tokens:? ?=?(\d+).*?features:? ?=?(?:torch.Size\(\[)?(\d+)", str(error))
            if numbers is None or "input_ids" not in inputs:
                return error
            text = inputs["input_ids"]
            wanted = int(numbers[2]) // len(text)
            ids = text[text != PLACEHOLDER].view(len(text), -1)
            if wanted == (text == PLACEHOLDER).sum() // len(text) or not wanted:
                return error
            places = torch.full((len(text), wanted), PLACEHOLDER)
            inputs = {**inputs, "input_ids": torch.cat([ids[:, :2], places, ids[:, 2:]], 1)}
            for name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
                if name in inputs:
                    inputs[name] = torch.ones_like(inputs["input_ids"]) * (name == "attention_mask")
    return UnbuildableError("placeholders")


def tiny_config(cls: type[tf.PreTrainedConfig]) -> tf.PreTrainedConfig:
    config = cls(**_overrides(cls))
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        rope = getattr(part, "rope_parameters", None)
        if isinstance(rope, dict) and "mrope_section" in {*rope, *getattr(part, "ignore_keys_at_rope_validation", ())}:
            half = int(8 * rope.get("partial_rotary_factor", 1)) // 2
            rope["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]
    return config


def _overrides(cls: type[tf.PreTrainedConfig]) -> dict[str, Any]:
    default = cls()
    found: dict[str, Any] = {}
    names = {**dict.fromkeys(inspect.signature(cls.__init__).parameters), **default.to_dict()}
    for name in names:
        value = _value(default, name)
        if isinstance(value, tf.PreTrainedConfig):
            found[name] = {**_overrides(type(value)), "model_type": value.model_type}
        elif name.endswith(("_token_id", "_token_index")) and isinstance(value, int | type(None)):
            kind = name.removesuffix("_token_id").removesuffix("_token_index")
            if kind in TOKENS_OF:
                found[name] = TOKENS_OF[kind]
            elif kind == "image" or isinstance(value, int):
                found[name] = (
                    PLACEHOLDER if kind in ("image", "audio", "img_context", "image_patch") else 8 + len(found) % 8
                )
        elif isinstance(value, bool) or name.startswith("_"):
            continue
        elif isinstance(value, int | float) or value is None:
            size = next((s for pattern, s in PATTERNS.items() if pattern.fullmatch(name)), None)
            if size is not None and isinstance(value, int) and (value > size or size in (IMAGE,)):
                found[name] = size
        elif isinstance(value, list | tuple) and value and all(isinstance(v, int) for v in value):
            found |= _listed(name, list(value))
    return found | _whole_sets(default, names, found)


def _whole_sets(default: tf.PreTrainedConfig, names: Collection[str], found: Mapping[str, Any]) -> dict[str, Any]:
    """What several fields have to say alike."""
    more: dict[str, Any] = {}
    if {"window_size", "depths"} <= found.keys() and isinstance(
        getattr(default, "embed_dim", None), int
    ):  # windows that are larger than the last stages are none
        more |= {"depths": [2, 1], "num_heads": [2, 4]}
    if "attention_types" in names:
        more["attention_types"] = [[["global", "local"], 1]]
    if "vocabulary_map" in names:
        visual = {f"<|visual token {i:06}|>": 20 + i for i in range(32)}
        more["vocabulary_map"] = {"<image>": PLACEHOLDER, "<|extra_200|>": 9, **visual}
    kinds = list(dict.fromkeys(getattr(default, "layer_types", None) or ()))
    if len(kinds) > 1:
        more["layer_types"] = kinds
        more |= {name: len(kinds) for name in ("num_hidden_layers", "num_layers") if name in found}
    backbone = getattr(default, "backbone_config", None)
    if "backbone_config" in names and getattr(backbone, "model_type", "timm_backbone") == "timm_backbone":
        more |= {
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone": None,
            "backbone_config": RESNET,
        }
    return more


def _value(config: tf.PreTrainedConfig, name: str) -> Any:
    """What a config says; what it says for each layer apart is as large as it always was."""
    try:
        return getattr(config, name, None)
    except Exception:  # a value of several layers
        return vars(config).get(name, 1 << 20)


LISTED: dict[str, Callable[[int], list[int]]] = {
    r"hidden_sizes|embed_dims|encoder_channels|backbone_out_channels|hidden_channels": lambda n: (
        [16 * 2 ** min(i, 2) for i in range(n)]
    ),
    r"depths|num_blocks|layers|encoder_layers_list|channel_multiplier": lambda n: [1] * n,
    r"num_heads|num_attention_heads": lambda n: [2] * n,
    r"image_size|img_size|input_size": lambda n: [IMAGE] * n,
    r"vision_feature_layers?|vit_layers": lambda n: list(range(n))[::-1],
    r"conv_dim": lambda n: [16] * n,
    r"tubelet_size": lambda n: [2] + [PATCH] * (n - 1),
}


def _listed(name: str, value: list[int]) -> dict[str, list[int]]:
    return next(({name: make(len(value))} for pattern, make in LISTED.items() if re.fullmatch(pattern, name)), {})


def attempts(model: tf.PreTrainedModel) -> Iterator[dict[str, Any]]:
    """Inputs to try, those with most modalities first."""
    wanted = inspect.signature(model.forward).parameters
    config = model.config
    vision = next(
        (c for c in (getattr(config, n, None) for n in ("vision_config", "image_config", "vq_config")) if c), config
    )
    side = getattr(vision, "image_size", IMAGE)
    side = side if isinstance(side, int) else (side[0] if isinstance(side, list | tuple) else IMAGE)
    patch = getattr(vision, "patch_size", PATCH)
    patch = patch if isinstance(patch, int) else PATCH
    channels = getattr(vision, "num_channels", 3) or 3
    text = getattr(config, "get_text_config", lambda: config)()
    high = min(getattr(text, "vocab_size", VOCABULARY) or VOCABULARY, VOCABULARY)
    ids = torch.randint(20, max(high, 21), (2, TOKENS))
    patches = (side // patch) ** 2
    merged = patches // getattr(vision, "spatial_merge_size", 1) ** 2
    with_images = torch.cat([ids[:, :2], torch.full((2, max(merged, 1)), PLACEHOLDER), ids[:, 2:]], 1)
    mels = getattr(config, "num_mel_bins", None) or getattr(getattr(config, "audio_config", None), "num_mel_bins", MELS)
    temporal = getattr(vision, "temporal_patch_size", 1)
    texts = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    texts_with_images = {"input_ids": with_images, "attention_mask": torch.ones_like(with_images)}
    flat = torch.randn(2 * patches, channels * patch * patch * (temporal if isinstance(temporal, int) else 1))
    grid = torch.tensor([[1, side // patch, side // patch]] * 2)
    images = torch.randn(2, channels, side, side)
    pixel_choices: list[dict[str, Any]] = [
        {"pixel_values": images},
        {"pixel_values": flat, "image_grid_thw": grid, "mm_token_type_ids": (with_images == PLACEHOLDER).long()},
        {"pixel_values": images[:, None], "image_sizes": torch.tensor([[side, side]] * 2)},
        {"pixel_values": images, "image_sizes": torch.tensor([[side, side]] * 2)},
        {"pixel_values": images, "pixel_mask": torch.ones(2, side, side, dtype=torch.long)},
        {
            "pixel_values": torch.randn(2, patches, channels * patch * patch),
            "pixel_attention_mask": torch.ones(2, patches, dtype=torch.long),
            "spatial_shapes": torch.tensor([[side // patch, side // patch]] * 2),
        },
        {
            "pixel_values": images[:, None], "pixel_attention_mask": torch.ones(2, 1, side, side, dtype=torch.bool),
        },
        {
            "pixel_values": images[:, None, None], "aspect_ratio_ids": torch.ones(2, 1, dtype=torch.long),
            "aspect_ratio_mask": torch.ones(2, 1, 1, dtype=torch.long),
            "cross_attention_mask": torch.ones(2, TOKENS, 1, 1, dtype=torch.long),
        },
        {"pixel_values": flat, "grid_thw": grid}, {"hidden_states": flat, "grid_thw": grid},
        {"pixel_values": torch.randn(2, 4, channels, side, side)},
        {"pixel_values": images, "image_embeds_position_mask": (torch.arange(TOKENS) < 4).long().expand(2, -1)},
    ]  # fmt: skip
    audio_choices: list[dict[str, Any]] = [
        {"input_features": torch.randn(2, mels, FRAMES)}, {"input_features": torch.randn(2, FRAMES, mels)},
        {"input_values": torch.randn(2, 2000)}, {"input_values": torch.randn(2, FRAMES, mels)},
        {"input_values": torch.randn(2, 1, 2000)},
        {"input_features": torch.randn(2, mels, FRAMES), "feature_attention_mask": torch.ones(2, FRAMES, dtype=torch.long)},
    ]  # fmt: skip
    decoder: dict[str, Any] = {"decoder_input_ids": ids[:, :4]} if "decoder_input_ids" in wanted else {}
    if "qformer_input_ids" in wanted:
        decoder |= {"qformer_input_ids": ids, "qformer_attention_mask": torch.ones_like(ids)}
    boxes: dict[str, Any] = {"bbox": torch.randint(0, 20, (2, TOKENS, 1)).expand(2, TOKENS, 4).clone()}
    table = [
        *({**texts, **boxes, **pixels} for pixels in pixel_choices[:1] if "bbox" in wanted),
        *({**texts, **boxes} for _ in range("bbox" in wanted)),
        *({**t, **pixels} for pixels in pixel_choices for t in (texts_with_images, texts)),
        *({**t, **sounds} for sounds in audio_choices for t in (texts_with_images, texts)),
        *pixel_choices, *audio_choices, texts, {"input_ids": ids},
    ]  # fmt: skip
    seen: set[tuple[Any, ...]] = set()
    for choice in table:
        if not set(choice) - {"attention_mask"} <= set(wanted):
            continue
        inputs = {**{k: v for k, v in choice.items() if k in wanted}, **decoder}
        sort = tuple((k, tuple(v.shape)) for k, v in inputs.items())
        if sort not in seen:
            seen.add(sort)
            yield inputs


def size_of(model: tf.PreTrainedModel) -> int:
    return sum(math.prod(p.shape) for p in model.parameters())
