"""Which module types are prunable units, how each is laid out, and what their parts are called.

This is the only file that names architectures. It describes attention and MLP *module types* by their qualified names, never
whole models, so a model composed of known modules needs no entry of its own, and a type has the entry of the nearest type that
it inherits from. Every table is open: an architecture of one's own is an entry added from outside (`describe`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TypeVar

from torch import nn

from prunus.anatomy.blocks import BlockMlp, MlpByShape
from prunus.anatomy.conventions import AttentionByConvention
from prunus.anatomy.dense import StaysDense
from prunus.anatomy.experts import Experts
from prunus.anatomy.forwards import fused_attention, windowed_attention
from prunus.anatomy.layouts import Attention, Layout, Mlp, TriedMlp
from prunus.anatomy.whole_experts import INSIDE, WholeExperts
from prunus.errors import PrunusError

ValueT = TypeVar("ValueT")

_BLIP_TEXT = Attention(
    "self.query", "self.key", "self.value", "output.dense", core="self",
    width="attention_head_size", totals=("all_head_size",), scale_follows_width=True,
)  # fmt: skip
_BLIP_VISION = Attention("qkv", "qkv", "qkv", "projection", own_forward=fused_attention)
_QWEN_VISION = Attention("qkv", "qkv", "qkv", "proj", rotary=True)

_NEOX = Attention(
    "query_key_value", "query_key_value", "query_key_value", "dense", width="head_size", grouped=True, rotary=True
)
_GPT2 = tuple(
    Attention(query, "c_attn", "c_attn", "c_proj", totals=("split_size",), scale_follows_width=follows)
    for query in ("q_attn", "c_attn")
    for follows in (False, True)
)
_GPT2_MLP = Mlp("c_fc", "c_proj", activation="act")
_BERT_MLP = Mlp("intermediate.dense", "output.dense", activation="intermediate.intermediate_act_fn", name="mlp")
_QUERY_MLP = Mlp(
    "intermediate_query.dense", "output_query.dense", activation="intermediate_query.intermediate_act_fn",
    name="mlp_query",
)  # fmt: skip
_REPLACED = StaysDense(
    "its forward puts an attention of another type in its place, so that what is narrowed is not what is built"
)
_OVER_CHANNELS = StaysDense(
    "its softmax is over channels, and gives a silent one its part of the attention: it cannot be cut out"
)

_TRANSFORMERS: dict[str, dict[str, tuple[Layout, ...]]] = {
    "blip.modeling_blip": {"BlipAttention": (_BLIP_VISION,)},
    "blip.modeling_blip_text": {"BlipTextAttention": (_BLIP_TEXT,), "BlipTextLayer": (_BERT_MLP,)},
    "blip_2.modeling_blip_2": {
        "Blip2Attention": (_BLIP_VISION,),
        "Blip2QFormerLayer": (_BERT_MLP, _QUERY_MLP),
    },
    "instructblip.modeling_instructblip": {
        "InstructBlipAttention": (_BLIP_VISION,),
        "InstructBlipQFormerLayer": (_BERT_MLP, _QUERY_MLP),
    },
    "phi3.modeling_phi3": {"Phi3Attention": (Attention("qkv_proj", "qkv_proj", "qkv_proj", "o_proj", rotary=True),)},
    "phi4_multimodal.modeling_phi4_multimodal": {
        "Phi4MultimodalAttention": (Attention("qkv_proj", "qkv_proj", "qkv_proj", "o_proj", rotary=True),),
    },
    "gpt2.modeling_gpt2": {"GPT2Attention": _GPT2, "GPT2MLP": (_GPT2_MLP,)},
    "imagegpt.modeling_imagegpt": {"ImageGPTAttention": _GPT2, "ImageGPTMLP": (_GPT2_MLP,)},
    "decision_transformer.modeling_decision_transformer": {
        "DecisionTransformerGPT2Attention": _GPT2, "DecisionTransformerGPT2MLP": (_GPT2_MLP,),
    },
    "gpt_neox.modeling_gpt_neox": {"GPTNeoXAttention": (_NEOX,)},
    "bloom.modeling_bloom": {
        "BloomAttention": (
            Attention(
                "query_key_value", "query_key_value", "query_key_value", "dense", grouped=True,
                totals=("hidden_size", "split_size"),
            ),
        ),
    },
    "falcon.modeling_falcon": {
        "FalconAttention": (
            Attention(
                "query_key_value", "query_key_value", "query_key_value", "dense", grouped=True, rotary=True,
                scale_follows_width=True, unless="alibi",
            ),
        ),
    },
    "mpt.modeling_mpt": {
        "MptAttention": (Attention("Wqkv", "Wqkv", "Wqkv", "out_proj"),),
    },
    "dbrx.modeling_dbrx": {
        "DbrxAttention": (Attention("Wqkv", "Wqkv", "Wqkv", "out_proj", rotary=True, totals=("hidden_size",)),),
    },
    "modernbert.modeling_modernbert": {
        "ModernBertAttention": (
            Attention("Wqkv", "Wqkv", "Wqkv", "Wo", rotary=True, scale_follows_width=True),
        ),
    },
    "big_bird.modeling_big_bird": {"BigBirdAttention": (_REPLACED,)},
    "bigbird_pegasus.modeling_bigbird_pegasus": {
        "BigBirdPegasusEncoderAttention": (_REPLACED,), "BigBirdPegasusSelfAttention": (_REPLACED,),
    },
    "florence2.modeling_florence2": {
        "Florence2VisionChannelAttention": (_OVER_CHANNELS,),
        "Florence2VisionWindowAttention": (
            Attention("qkv", "qkv", "qkv", "proj", width="", heads="num_heads", own_forward=windowed_attention),
        ),
    },
    "llama4.modeling_llama4": {"Llama4TextExperts": (Experts(transposed=True, batched=True),)},
    "qwen2_vl.modeling_qwen2_vl": {"VisionAttention": (_QWEN_VISION,)},
    "qwen2_5_vl.modeling_qwen2_5_vl": {"Qwen2_5_VLVisionAttention": (_QWEN_VISION,)},
}  # fmt: skip

_OURS: dict[str, dict[str, tuple[Layout, ...]]] = {
    "blip_nlvr": {
        "BlipNlvrCrossAttention": tuple(
            Attention(
                f"self{image}.query", f"self{image}.key", f"self{image}.value", f"output.dense{image}", core=f"self{image}",
                width="attention_head_size", totals=("all_head_size",), scale_follows_width=True,
                name=f"self{image}", kind=f"cross{image}",
            )
            for image in (0, 1)
        ),
    },
}  # fmt: skip

CATALOG: dict[str, tuple[Layout, ...]] = {
    f"{package}.{module}:{name}": layouts
    for package, modules in {"transformers.models": _TRANSFORMERS, "prunus.models": _OURS}.items()
    for module, types in modules.items()
    for name, layouts in types.items()
}
"""Qualified name of a module type, `package.module:Class` → its layouts."""

CONVENTIONS: tuple[TriedMlp | BlockMlp | AttentionByConvention | Experts | StaysDense, ...] = (
    Experts(),
    Experts("up_proj", gated=False),
    TriedMlp("up_proj", "down_proj", gate="gate_proj"),
    TriedMlp("gate_up_proj", "down_proj", gate="gate_up_proj", activation="activation_fn"),
    TriedMlp("Wi", "Wo", gate="Wi", activation="act"),
    TriedMlp("fc1", "fc2", activation="activation_fn"),
    TriedMlp("fc1", "fc2", activation="act"),
    TriedMlp("fc1", "fc2", activation="activation"),
    TriedMlp("wi", "wo", activation="act"),
    TriedMlp("w1", "w2", activation="act"),
    TriedMlp("c_fc", "c_proj", activation="act"),
    TriedMlp("lin1", "lin2", activation="activation"),
    TriedMlp("up_proj", "down_proj", gate="gate_proj", activation="activation_fn"),
    TriedMlp("intermediate_dense", "output_dense", activation="intermediate_act_fn"),
    TriedMlp("linear1", "linear2", activation="activation"),
    TriedMlp("gate_up_proj", "down_proj", gate="gate_up_proj", activation="act_fn"),
    BlockMlp("fc1", "fc2"),
    BlockMlp("intermediate.dense", "output.dense"),
    BlockMlp("intermediate_query.dense", "output_query.dense", name="mlp_query"),
    BlockMlp("linear1", "linear2"),
    BlockMlp("ffn", "ffn_output"),
    AttentionByConvention(),
    StaysDense(
        "linear attention, or a state space: its heads keep a state of their width, and pass a convolution and a norm over it",
        holding=("A_log",),
    ),
)
"""Layouts tried on types that the catalog does not name. A match counts only if a trial run equals the formula."""

BY_SHAPE: tuple[MlpByShape, ...] = (MlpByShape(),)
"""Layouts tried in blocks where nothing else fits."""

OPAQUE: dict[str, str] = {
    "torch.nn.modules.activation:MultiheadAttention": (
        "torch.nn.MultiheadAttention keeps q, k and v in one bare parameter and checks their sizes"
    ),
}
"""Modules that hold transformer weights but cannot be narrowed, with the reason."""

FUSED_EXPERTS: dict[str, bool] = {
    "transformers.models.llama4.modeling_llama4:Llama4TextExperts": True,
    "transformers.models.jetmoe.modeling_jetmoe:JetMoeParallelExperts": False,
}
"""Modules with one parameter for all experts, (experts, …, …), that do not say themselves whether they store each matrix as
(inputs, outputs). Their forward multiplies all experts at once, and rows that were not routed to one are zero."""

EXPERTS = "experts"
"""Path component under which a block keeps its experts."""
ROUTERS = re.compile(r"Router|Gating|MoEGate|MoeGate")
"""Types of modules that send tokens to experts."""
ROUTER_NAMES = ("router", "shared_expert_gate", "shared_experts_gate")
"""Path components of such modules."""

CROSS_ATTENTION = re.compile(r"cross|^encdecattention$|^encoder_attn$", re.IGNORECASE)
"""How a cross-attention is called by the module around it."""

CONNECTORS = (
    "aligner", "connector", "deepstack_merger_list", "image_to_text_projection", "merger", "multi_modal_projector",
    "perceiver_resampler", "projector", "qformer", "resampler", "vision_adapter", "vision_projection", "vision_resampler",
    "vit_merger",
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
    "audio_tower": "audio",
    "audio_encoder": "audio",
    "audio_model": "audio",
    "text_decoder": "decoder",
    "language_model": "language",
    "text_model": "text",
    "text_encoder": "text",
}
"""Path component → tower; the first component of a module's path that is listed here decides."""


def describe(kind: type[nn.Module] | str, *layouts: Layout) -> None:
    """Adds a module type to the catalog, or replaces its entry.

    Args:
        kind: the type, or its qualified name, `package.module:Class`, which need not be imported yet.
        layouts: of its attentions and MLPs. Of several without a name the first that fits counts.

    Raises:
        PrunusError: it is no module type, or there is no layout.

    Examples:
        >>> describe("my_package.vit:Attention", Attention("query", "key", "value", "out", width="head_width"))
    """
    name = qualified(kind) if isinstance(kind, type) and issubclass(kind, nn.Module) else kind
    if not isinstance(name, str) or not re.fullmatch(r"[\w.]+:[\w.<>]+", name):
        raise PrunusError("module type", kind, "give a class, or its name as package.module:Class")
    if not layouts or not all(isinstance(layout, Layout) for layout in layouts):
        raise PrunusError("layouts", layouts, "give one or more layouts, such as Mlp('fc1', 'fc2', activation='act')")
    CATALOG[name] = layouts


def qualified(kind: type) -> str:
    """The name under which a type stands in these tables."""
    return f"{kind.__module__}:{kind.__qualname__}"


def entry(table: Mapping[str, ValueT], module: nn.Module) -> ValueT | None:
    """What a table says of a module's type, or else of the nearest that it inherits from."""
    return next((table[name] for name in _names(type(module).__mro__) if name in table), None)


@lru_cache(maxsize=4096)
def _names(kinds: tuple[type, ...]) -> tuple[str, ...]:
    """Of a type and of all that it inherits from, the nearest first."""
    return tuple(map(qualified, kinds))


def layouts_of(module: nn.Module) -> tuple[Layout, ...]:
    """The layouts to try on a module: those of its type, else those by convention."""
    known = entry(CATALOG, module)
    if known is not None:
        return known
    if type(module).__module__.startswith("torch."):
        return tuple(layout for layout in BY_SHAPE if type(module) is nn.Sequential and layout.resembles(module))
    return tuple(layout for layout in (*CONVENTIONS, *BY_SHAPE) if layout.resembles(module))


def sets_of(module: nn.Module) -> tuple[WholeExperts, ...]:
    """The layouts to try on a block whose experts may leave as a whole."""
    inside = module._modules.get(INSIDE)
    known = () if inside is None else layouts_of(inside)
    return tuple(WholeExperts(layout) for layout in known if isinstance(layout, Experts))
