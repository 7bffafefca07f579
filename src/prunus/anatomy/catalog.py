"""Which module types are prunable units, and how each is laid out.

This is the only file that names architectures. It describes attention and MLP *module types*, never whole models,
so a model composed of known modules needs no entry of its own. A type may list several layouts: the first one whose
submodules exist (and whose shapes agree, see `discover`) is used, which also covers layouts that changed between
transformers releases.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attention:
    """Layout of an attention whose q, k, v and output are linear layers.

    Paths are relative to the module of the catalogued type. `core` is the module that holds the sizes the forward
    reads: `width` (head width) and, where they exist, `totals` (heads × width). Head counts follow from the rows.
    """

    query: str
    key: str
    value: str
    out: str
    core: str = ""
    width: str = "head_dim"
    totals: tuple[str, ...] = ()
    rotary: bool = False
    """q and k are rotated: channels i and i + width/2 go together, and the rotation tables are narrowed with them."""
    scale_follows_width: bool = False
    """The forward divides the logits by sqrt(current width), so surgery folds sqrt(new/old) into the queries."""


@dataclass(frozen=True)
class FusedAttention:
    """Layout of an attention with one linear layer for q, k and v, its rows ordered (3, heads, width)."""

    qkv: str
    out: str
    width: str = "head_dim"
    rotary: bool = False
    own_forward: bool = False
    """The stock forward derives the head width from the hidden size, so a narrowed module needs ours."""


@dataclass(frozen=True)
class Mlp:
    """Layout of an MLP: one producer (`up`), or two that are multiplied (`up` and `gate`), and one consumer."""

    up: str
    down: str
    gate: str | None = None
    activation: str | None = None
    name: str = ""
    """Suffix of the unit's name where the module is a whole block or holds several MLPs."""


Layout = Attention | FusedAttention | Mlp

_SPLIT = Attention("q_proj", "k_proj", "v_proj", "out_proj")
_LLAMA = Attention("q_proj", "k_proj", "v_proj", "o_proj", rotary=True)
_VIT = Attention("q_proj", "k_proj", "v_proj", "o_proj")
_DINOV2_5_17 = Attention(
    "attention.query", "attention.key", "attention.value", "output.dense", core="attention",
    width="attention_head_size", totals=("all_head_size",),
)  # fmt: skip
_BERT = Attention(
    "self.query", "self.key", "self.value", "output.dense", core="self",
    width="attention_head_size", totals=("all_head_size",),
)  # fmt: skip
_BLIP_TEXT = Attention(
    "self.query", "self.key", "self.value", "output.dense", core="self",
    width="attention_head_size", totals=("all_head_size",), scale_follows_width=True,
)  # fmt: skip
_VILT = Attention(
    "attention.query", "attention.key", "attention.value", "output.dense", core="attention",
    width="attention_head_size", totals=("all_head_size",), scale_follows_width=True,
)  # fmt: skip
_QFORMER = _DINOV2_5_17
_BLIP_VISION = FusedAttention("qkv", "projection", own_forward=True)
_QWEN_VISION = FusedAttention("qkv", "proj", rotary=True)

_FC = Mlp("fc1", "fc2", activation="activation_fn")
_GATED = Mlp("up_proj", "down_proj", gate="gate_proj")
_BERT_MLP = Mlp("intermediate.dense", "output.dense", activation="intermediate.intermediate_act_fn", name="mlp")
_QUERY_MLP = Mlp(
    "intermediate_query.dense", "output_query.dense", activation="intermediate_query.intermediate_act_fn",
    name="mlp_query",
)  # fmt: skip

CATALOG: dict[str, tuple[Layout, ...]] = {
    # BLIP, BLIP-2, InstructBLIP
    "BlipAttention": (_BLIP_VISION,),
    "Blip2Attention": (_BLIP_VISION,),
    "InstructBlipAttention": (_BLIP_VISION,),
    "BlipMLP": (_FC,),
    "Blip2MLP": (_FC,),
    "InstructBlipMLP": (_FC,),
    "BlipTextAttention": (_BLIP_TEXT,),
    "BlipTextLayer": (_BERT_MLP,),
    "Blip2QFormerAttention": (_QFORMER,),
    "Blip2QFormerLayer": (_BERT_MLP, _QUERY_MLP),
    "InstructBlipQFormerAttention": (_QFORMER,),
    "InstructBlipQFormerLayer": (_BERT_MLP, _QUERY_MLP),
    # CLIP, SigLIP
    "CLIPAttention": (_SPLIT,),
    "CLIPMLP": (_FC,),
    "SiglipAttention": (_SPLIT,),
    "SiglipMLP": (_FC,),
    # ViT, DeiT, DINOv2, ViLT
    "ViTAttention": (_VIT,),
    "ViTMLP": (_FC,),
    "DeiTAttention": (_VIT,),
    "DeiTMLP": (_FC,),
    "Dinov2Attention": (_VIT, _DINOV2_5_17),
    "Dinov2MLP": (_FC, Mlp("fc1", "fc2", activation="activation")),
    "Dinov2SwiGLUFFN": (_GATED,),
    "ViltAttention": (_VILT,),
    "ViltLayer": (_BERT_MLP,),
    # BERT
    "BertAttention": (_BERT,),
    "BertLayer": (_BERT_MLP,),
    # T5
    "T5Attention": (Attention("q", "k", "v", "o", width="key_value_proj_dim", totals=("inner_dim",)),),
    "T5DenseActDense": (Mlp("wi", "wo", activation="act"),),
    "T5DenseGatedActDense": (Mlp("wi_1", "wo", gate="wi_0"),),
    # decoders: OPT, LLaMA, Qwen2, Mistral, Qwen2-VL, Qwen2.5-VL
    "OPTAttention": (_SPLIT,),
    "OPTDecoderLayer": (Mlp("fc1", "fc2", activation="activation_fn", name="mlp"),),
    "LlamaAttention": (_LLAMA,),
    "LlamaMLP": (_GATED,),
    "MistralAttention": (_LLAMA,),
    "MistralMLP": (_GATED,),
    "Qwen2Attention": (_LLAMA,),
    "Qwen2MLP": (_GATED,),
    "Qwen2VLAttention": (_LLAMA,),
    "Qwen2_5_VLAttention": (_LLAMA,),
    "VisionAttention": (_QWEN_VISION,),
    "Qwen2_5_VLVisionAttention": (_QWEN_VISION,),
    "VisionMlp": (Mlp("fc1", "fc2", activation="act"),),
    "Qwen2_5_VLMLP": (_GATED,),
}

CONVENTIONS: tuple[Mlp, ...] = (
    _GATED,
    _FC,
    Mlp("fc1", "fc2", activation="act"),
    Mlp("fc1", "fc2", activation="activation"),
    Mlp("wi", "wo", activation="act"),
    Mlp("w1", "w2", activation="act"),
)
"""MLP layouts tried on types the catalog does not name. A match counts only if a trial run equals the formula."""

OPAQUE: dict[str, str] = {
    "MultiheadAttention": "torch.nn.MultiheadAttention keeps q, k and v in one bare parameter and checks their sizes",
}
"""Modules that hold transformer weights but cannot be narrowed, with the reason."""

FUSED_EXPERTS: dict[str, bool] = {
    "Llama4TextExperts": True,
}
"""Modules with one parameter for all experts, (experts, …, …), that do not say themselves whether they store each matrix as
(inputs, outputs). Their forward multiplies all experts at once, and rows that were not routed to one are zero."""

CONNECTORS = (
    "connector", "deepstack_merger_list", "merger", "multi_modal_projector", "perceiver_resampler", "projector", "qformer",
    "resampler", "vision_resampler", "vit_merger", "vision_adapter",
)  # fmt: skip
"""Path components that make a part a connector, also inside of another tower."""

TOWERS: dict[str, str] = {
    "qformer": "connector",
    "multi_modal_projector": "connector",
    "language_projection": "connector",
    "vision_model": "vision",
    "vision_tower": "vision",
    "vision_encoder": "vision",
    "visual_encoder": "vision",
    "visual": "vision",
    "text_decoder": "decoder",
    "language_model": "language",
    "text_model": "text",
    "text_encoder": "text",
}
"""Path component → tower; the first component of a module's path that is listed here decides."""
