"""What both roads reach in the model types of transformers, tried on tiny random models: the table of docs/families.md.

`python -m benchmarks.family_sweep OUT.json [TYPE ...]` adds what it finds to OUT.json, type by type, and goes on there when it is
started again; `--page` writes docs/families.md from it, and `python -m benchmarks.tables --take` the JSON of its tables. Every type has its own time limit.
"""

from __future__ import annotations

import copy
import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.disk_sweep import QUIET, reached, seeded
from benchmarks.tiny_models import Tiny, UnbuildableError, build
from prunus import Plan, PrunusError, Search, UPop, Wanda, anatomy, extract, prune
from prunus.anatomy import CATALOG, MEANT_DENSE, Anatomy, survey
from prunus.anatomy.catalog import entry
from prunus.structured.gates import Gates

LIMIT = 40
PAGE = Path(__file__).parents[1] / "docs" / "families.md"
TOLERANCE = 1e-5
FP64 = " (fp64)"
TYPES = ["blip", "blip-2", "instructblip", "instructblipvideo", "clip", "clip_text_model", "clip_vision_model", "siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model", "metaclip_2", "altclip", "align", "chinese_clip", "clipseg", "xclip", "groupvit", "owlvit", "owlv2", "flava", "bridgetower", "vilt", "visual_bert", "lxmert", "git", "kosmos-2", "kosmos-2.5", "pix2struct", "udop", "layoutlm", "layoutlmv2", "layoutlmv3", "markuplm", "lilt", "donut-swin", "trocr", "vision-encoder-decoder", "vision-text-dual-encoder", "tvp", "llava", "llava_next", "llava_next_video", "llava_onevision", "vipllava", "video_llava", "video_llama_3", "video_llama_3_vision", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "qwen2_5_vl_vision", "qwen3_vl", "qwen3_vl_text", "qwen3_vl_vision", "qwen3_vl_moe", "qwen3_vl_moe_text", "qwen3_5", "qwen3_5_text", "qwen3_5_vision", "qwen3_5_moe", "qwen3_5_moe_text", "paligemma", "shieldgemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "gemma4_vision", "gemma4_audio", "idefics", "idefics2", "idefics3", "idefics3_vision", "smolvlm", "smolvlm_vision", "internvl", "internvl_vision", "mistral3", "pixtral", "aya_vision", "cohere2_vision", "mllama", "glm4v", "glm4v_text", "glm4v_vision", "glm4v_moe", "glm4v_moe_text", "glm46v", "glm_ocr", "glm_ocr_text", "glm_ocr_vision", "florence2", "aria", "aria_text", "emu3", "chameleon", "janus", "fuyu", "molmo2", "molmo2_text", "ovis2", "deepseek_vl", "deepseek_vl_hybrid", "perception_lm", "fast_vlm", "got_ocr2", "lighton_ocr", "lfm2_vl", "ernie4_5_vl_moe", "llama4", "llama4_text", "granite4_vision", "modernvbert", "cosmos3_edge_text", "phi4_multimodal", "paddleocr_vl", "hunyuan_vl", "minicpmv4_6", "vit", "vit_mae", "vit_msn", "vitdet", "vivit", "deit", "beit", "data2vec-vision", "dinov2", "dinov2_with_registers", "dinov3_vit", "ijepa", "aimv2", "aimv2_vision_model", "swin", "swinv2", "swin2sr", "hiera", "yolos", "videomae", "timesformer", "vjepa2", "segformer", "dpt", "pvt", "pvt_v2", "mobilevit", "cvt", "levit", "detr", "conditional_detr", "deformable_detr", "grounding-dino", "mm-grounding-dino", "table-transformer", "rt_detr", "dab-detr", "sam", "sam_vision_model", "sam2_vision_model", "sam3_vision_model", "mgp-str", "glpn", "pixio", "mlcd_vision_model", "radio", "tipsv2_vision_model", "imagegpt", "perceiver", "bert", "bert-generation", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod", "camembert", "electra", "distilbert", "albert", "mpnet", "deberta", "deberta-v2", "modernbert", "modernbert-decoder", "ernie", "data2vec-text", "rembert", "megatron-bert", "mobilebert", "squeezebert", "ibert", "nomic_bert", "eurobert", "esm", "roformer", "big_bird", "longformer", "fnet", "funnel", "xlnet", "xlm", "flaubert", "luke", "splinter", "convbert", "canine", "nystromformer", "tapas", "mra", "yoso", "t5", "mt5", "umt5", "longt5", "switch_transformers", "bart", "mbart", "pegasus", "pegasus_x", "plbart", "blenderbot", "blenderbot-small", "marian", "m2m_100", "nllb-moe", "led", "prophetnet", "bigbird_pegasus", "fsmt", "t5gemma", "t5gemma2", "whisper", "speech_to_text", "wav2vec2", "hubert", "wavlm", "sew", "unispeech", "wav2vec2-bert", "moonshine", "audio-spectrogram-transformer", "clap", "qwen2_audio", "qwen2_audio_encoder", "voxtral", "voxtral_encoder", "gpt2", "gpt-sw3", "gpt_neo", "gpt_neox", "gpt_neox_japanese", "gpt_bigcode", "gptj", "codegen", "bloom", "falcon", "mpt", "opt", "openai-gpt", "ctrl", "xglm", "biogpt", "persimmon", "llama", "mistral", "ministral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "gemma", "gemma2", "phi", "phi3", "phimoe", "olmo", "olmo2", "olmo3", "olmoe", "granite", "granitemoe", "granitemoeshared", "smollm3", "stablelm", "starcoder2", "cohere", "cohere2", "glm", "glm4", "glm4_moe", "gpt_oss", "deepseek_v2", "deepseek_v3", "dbrx", "jetmoe", "arcee", "apertus", "helium", "nemotron", "exaone4", "ernie4_5", "ernie4_5_moe", "hunyuan_v1_dense", "hunyuan_v1_moe", "seed_oss", "bitnet", "diffllama", "doge", "dots1", "flex_olmo", "minimax_m2", "internlm3"]  # fmt: skip
"""Model types that people use: vision and language together, vision, text, encoder-decoders and speech, language."""
FAMILIES = {
    "Qwen3": ("qwen3",), "Qwen3-VL": ("qwen3_vl",), "Qwen3.5": ("qwen3_5",), "Gemma 1–4": ("gemma", "gemma2", "gemma3", "gemma4"),
    "Phi-3, Phi-4": ("phi3", "phi4_multimodal"), "SmolVLM": ("smolvlm",), "Idefics 2, 3": ("idefics2", "idefics3"), "PaliGemma": ("paligemma",),
    "InternVL": ("internvl",), "Pixtral, Mistral 3": ("pixtral", "mistral3"), "Aya Vision": ("aya_vision",), "Mllama": ("mllama",),
    "GLM-4V": ("glm4v",), "Kosmos-2": ("kosmos-2",), "Florence-2": ("florence2",), "SigLIP 2": ("siglip2",), "DINOv3": ("dinov3_vit",),
    "BEiT": ("beit",), "Swin": ("swin",), "RoBERTa": ("roberta",), "ModernBERT": ("modernbert",), "BART": ("bart",), "Whisper": ("whisper",),
    "GPT-2": ("gpt2",), "GPT-NeoX": ("gpt_neox",), "Mixtral": ("mixtral",), "Qwen3-MoE": ("qwen3_moe",),
}  # fmt: skip
"""Families that many people use, by their model types."""
LINEAR = re.compile("DeltaNet|Mamba|ShortConv|LinearAttention")
"""Mixers of tokens that are no attentions over all of them."""
_SWIN_B: dict[str, Any] = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "Swin-T": ("swin", {}),
    "Swin-B": ("swin", _SWIN_B),
    "Swin V2-B": ("swinv2", _SWIN_B),
    "Donut-base, its encoder": (
        "donut-swin", _SWIN_B | {"depths": [2, 2, 14, 2], "window_size": 10, "image_size": [2560, 1920]}
    ),
    **{
        f"Florence-2-{size}": (
            "florence2",
            {
                "vision_config": {
                    "embed_dim": [width * 2**stage for stage in range(4)], "depths": [1, 1, 9, 1], "projection_dim": model,
                    "num_heads": [width // 32 * 2**stage for stage in range(4)],
                    "num_groups": [width // 32 * 2**stage for stage in range(4)],
                },
                "text_config": {
                    "model_type": "bart", "vocab_size": 51289, "d_model": model, "encoder_layers": layers, "decoder_layers": layers,
                    "encoder_ffn_dim": 4 * model, "decoder_ffn_dim": 4 * model, "encoder_attention_heads": model // 64,
                    "decoder_attention_heads": model // 64,
                },
            },
        )
        for size, width, model, layers in (("base", 128, 768, 6), ("large", 256, 1024, 12))
    },
    "Qwen3.5, the config's defaults": ("qwen3_5", {}),
}  # fmt: skip
"""Name → model type and sizes."""
ATTENTION = re.compile(r"att|(^|[._])(q|k|v|qkv|query|key|value)(_proj|_lin)?([._]|$)", re.IGNORECASE)
"""How matrices of attentions are called, where they belong to no unit."""


@dataclass
class Row:
    """What comes of one model type. Shares are of the weight matrices in its blocks, routers and what is no matrix apart."""

    model: str = ""
    towers: dict[str, float] = field(default_factory=dict)
    """Tower → its share of all parameters."""
    blocks: int = 0
    """Weights in blocks."""
    attention: float = 0.0
    """Share of the attentions' weights that leave if every channel leaves; −1 where there are none."""
    mlp: float = 0.0
    """The same of everything else in the blocks."""
    structured: float = 0.0
    """The same of both together."""
    unstructured: float = 0.0
    """Share of the weights that unstructured pruning chooses from."""
    mixers: float = 0.0
    """Share of what stays dense because it is a linear attention or the like."""
    entries: list[str] = field(default_factory=list)
    """Types of its units that stand in the catalog."""
    prune: str = ""
    search: str = ""
    extract: str = ""
    generate: str = ""
    reload: str = ""
    dense: list[str] = field(default_factory=list)
    """Types that stay dense on the structured road, each with its share and the reason."""
    error: str = ""


def swept(model_type: str) -> Row:
    """One type within the time limit; whatever goes wrong is said."""

    def late(*_: object) -> None:
        raise TimeoutError

    row = Row()
    signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        tiny = build(model_type)
        row.model = type(tiny.model).__name__
        parts = anatomy(tiny.model)
        _shares(row, tiny.model, parts)
        row.prune = _said(_pruned, tiny)
        row.search = _said(_searched, tiny)
        if parts.units:
            _extracted(row, tiny)
    except UnbuildableError as error:
        row.error = f"not built: {error}"
    except TimeoutError:
        row.error = f"takes longer than {LIMIT} s"
    except Exception as error:
        row.error = f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.alarm(0)
    return row


def _said(function: Any, tiny: Tiny) -> str:
    try:
        return str(function(tiny))
    except TimeoutError:
        raise
    except PrunusError as error:
        return f"refused: {error}"[:200]
    except Exception as error:
        return f"failed: {type(error).__name__}: {error}"[:200]


def _shares(row: Row, model: torch.nn.Module, parts: Anatomy) -> None:
    of_all = max(parts.parameters, 1)
    row.towers = {tower: round(count / of_all, 3) for tower, count in parts.tower_parameters.items()}
    found = survey(model, parts=parts)
    candidates = sum(m.weights for m in found.matrices)
    left = {part.name: part for part in found.left_dense if not part.reason.startswith(MEANT_DENSE)}
    row.blocks = candidates + sum(part.weights for part in left.values())
    row.unstructured = candidates / max(row.blocks, 1)
    kinds = {path: unit.is_attention for unit in parts for path in unit.linear_paths}
    sizes = {m.name: m.weights for m in found.matrices} | {name: part.weights for name, part in left.items()}
    reached_of: dict[bool, int] = {True: 0, False: 0}
    all_of: dict[bool, int] = {True: 0, False: 0}
    for matrix, size in sizes.items():
        name = matrix.partition("[")[0]  # the experts of one parameter leave together
        is_attention = kinds.get(name, bool(ATTENTION.search(name)))
        all_of[is_attention] += size
        reached_of[is_attention] += size if name in kinds else 0
    row.attention, row.mlp = (reached_of[k] / all_of[k] if all_of[k] else -1.0 for k in (True, False))
    row.structured = sum(reached_of.values()) / max(row.blocks, 1)
    units = (model.get_submodule(unit.path) for unit in parts)
    row.entries = sorted({type(unit).__name__ for unit in units if entry(CATALOG, unit) is not None})
    row.mixers = sum(part.parameters for part in parts.unmapped if LINEAR.search(part.type)) / max(row.blocks, 1)
    by_type: dict[tuple[str, str], int] = {}
    for part in parts.unmapped:
        by_type[part.type, part.reason] = by_type.get((part.type, part.reason), 0) + part.parameters
    row.dense = [
        f"{kind} ({count / max(row.blocks, 1):.0%}): {reason}"
        for (kind, reason), count in sorted(by_type.items(), key=lambda pair: -pair[1])
    ]


def _pruned(tiny: Tiny) -> str:
    """Pruning with the inputs at hand, counted afterwards."""
    model = copy.deepcopy(tiny.model)
    include = reached(model, tiny.inputs)
    if not include:
        return "nothing"
    plan = prune(model, Wanda(), [tiny.inputs] * 2, include=include, call=seeded, options=QUIET)
    return f"{plan.sparsity:.0%}" if hasattr(plan, "sparsity") else "done"


def _searched(tiny: Tiny) -> str:
    model = copy.deepcopy(tiny.model)
    if not anatomy(model).units:
        return "nothing"
    search = Search(model, UPop(ratio=0.4), total_steps=2)
    for _ in range(2):
        model.zero_grad()
        sum(tensor.float().square().mean() for tensor in outputs(seeded(model, tiny.inputs))).backward()
        search.step()
    return f"{search.plan().ratio:.0%}"


def _extracted(row: Row, tiny: Tiny) -> None:
    """Masked against extracted, what both generate, and what is loaded again; every unit keeps half of its channels."""
    model, whole = tiny.model, copy.deepcopy(tiny.model)
    small = extract(model, halved(model))
    gates = Gates(model, anatomy(model).units)
    plan = halved(model)
    gates.set({u.name: torch.zeros(u.channels).index_fill_(0, plan.kept(u), 1.0) for u in anatomy(model).units})
    with torch.no_grad():
        wide, narrow = outputs(seeded(model, tiny.inputs)), outputs(seeded(small, tiny.inputs))
    row.extract = deviation(wide, narrow)
    if not _is_close(row.extract):  # rounding may have grown on its way through the model
        with suppress(RuntimeError, TypeError, ValueError):  # not every forward computes in fp64
            row.extract = f"{_deviation_of_doubles(model, small, tiny.inputs)}{FP64}"
    row.generate = _generated(model, small, tiny.inputs)
    with tempfile.TemporaryDirectory() as folder:
        small.save_pretrained(folder)
        # copied, since convolutions may round otherwise on weights that lie in a mapped file as they come
        again = copy.deepcopy(type(small).from_pretrained(folder).eval())
    state, loaded = small.state_dict(), again.state_dict()
    different = [name for name in state if name not in loaded or not torch.equal(state[name], loaded[name])]
    with torch.no_grad():
        same = all(map(torch.equal, narrow, outputs(seeded(again, tiny.inputs))))
    row.reload = f"other weights: {different[0]}" if different else ("same" if same else "other outputs")
    if row.reload != "same" and not _reloads(whole):
        row.reload = "as dense"


def in_published_sizes() -> dict[str, Row]:
    """Name → the shares of models in sizes that people use, without any weights."""
    rows: dict[str, Row] = {}
    for name, (model_type, sizes) in PUBLISHED.items():
        with torch.device("meta"):
            model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(model_type, **sizes))
        rows[name] = row = Row()
        _shares(row, model, anatomy(model))
    return rows


def _deviation_of_doubles(model: torch.nn.Module, small: torch.nn.Module, inputs: Mapping[str, Any]) -> str:
    given = {n: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for n, v in inputs.items()}
    with torch.no_grad():
        wide, narrow = (outputs(seeded(copy.deepcopy(one).double(), copy.deepcopy(given))) for one in (model, small))
    return deviation(wide, narrow)


def _reloads(model: Any) -> bool:
    """Whether the dense model comes back as it was saved; some types do not, in the library itself."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = type(model).from_pretrained(folder).state_dict()
    return all(name in loaded and torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def halved(model: torch.nn.Module) -> Plan:
    """Half of the channels of every unit, drawn by lot."""
    parts, generator = anatomy(model), torch.Generator().manual_seed(0)
    masks = {}
    for unit in parts:
        kept = torch.randperm(unit.channels, generator=generator)[: (unit.channels + 1) // 2]
        masks[unit.name] = torch.zeros(unit.channels, dtype=torch.bool).index_fill_(0, kept, True)
    return Plan.from_masks(parts, masks)


def outputs(result: Any) -> list[torch.Tensor]:
    """Every float tensor of an output, nested ones too; no caches."""
    if torch.is_tensor(result):
        return [result] if result.is_floating_point() else []
    if isinstance(result, Mapping):
        return [tensor for name, part in result.items() if "past" not in name for tensor in outputs(part)]
    if isinstance(result, tuple | list):
        return [tensor for part in result for tensor in outputs(part)]
    return []


def deviation(first: list[torch.Tensor], second: list[torch.Tensor]) -> str:
    """The largest difference, relative to the scale of each output where that exceeds one."""
    if not first or [t.shape for t in first] != [t.shape for t in second]:
        return "other shapes" if first else "no outputs"
    if not all(bool(t.isfinite().all()) for t in first):
        where = [(a - b)[a.isfinite()].abs().max() for a, b in zip(first, second, strict=True) if a.isfinite().any()]
        return f"{float(max(where, default=0.0)):.1e}"
    return f"{max(float((a - b).abs().max() / a.abs().max().clamp_min(1.0)) for a, b in zip(first, second, strict=True) if a.numel()):.1e}"


def _generated(model: Any, small: Any, inputs: dict[str, Any]) -> str:
    if not model.can_generate():
        return "–"
    given = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
    given = copy.deepcopy(given)  # some write into them
    arguments = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "use_cache": True}
    if "input_ids" in given and not model.config.is_encoder_decoder:
        arguments["suppress_tokens"] = list(range(20))
    found = []
    for one in (model, small):
        try:
            torch.manual_seed(0)
            result = one.generate(**given, **arguments)
            found.append(result if torch.is_tensor(result) else next(v for v in result.values() if torch.is_tensor(v)))
        except TimeoutError:
            raise
        except Exception as error:
            if one is model:
                return "–"
            return f"failed: {type(error).__name__}: {error}"[:200]
    return "same" if torch.equal(*found) else "differs"


def is_exact(row: Row) -> bool:
    """Whether nothing is silently wrong: exact, or refused and named."""
    return (
        not row.error
        and _is_close(row.extract)
        and row.generate in ("", "–", "same")
        and row.reload in ("", "same", "as dense")
    )


def _is_close(extract: str) -> bool:
    number = extract.removesuffix(FP64)
    return not number or (re.fullmatch(r"[\d.e+-]+", number) is not None and float(number) <= TOLERANCE)


def needs_no_entry(row: Row) -> bool:
    """Whether at least 95 % are reached without an entry of the catalog, exactly."""
    return is_exact(row) and row.structured >= 0.95 and not row.entries


def _families(found: Mapping[str, Row]) -> list[str]:
    """The table of the families that many people use."""
    lines = [
        "", "## Families that many people use", "",
        "Structured: share of the block weights, linear attentions apart. A family reaches the bar if that is at least 95 %, with masked ≡ extracted",
        "≤ 1e-5, the same generation and the same weights after a reload.", "",
        "<!-- figures: families.json used-by-many -->", "",
        "| family | model type | structured | unstructured | masked ≡ extracted | generation | reload | bar |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for family, types in FAMILIES.items():
        for name in types:
            row = found.get(name, Row(error="not tried"))
            share = row.structured / max(1 - row.mixers, 0.01)
            reached = (
                "reached"
                if share >= 0.95 and is_exact(row)
                else _cell(row.error or "; ".join(row.dense[:2]) or "not exact", 200)
            )
            cells = f"{_share(min(share, 1.0))} | {_share(row.unstructured)} | {row.extract} | {row.generate} | {row.reload}"
            lines.append(f"| {family} | {name} | {cells} | {reached} |")
    return lines


def _share(share: float) -> str:
    return "–" if share < 0 else f"{100 * share:.0f}" if share in (0.0, 1.0) else f"{100 * share:.1f}"


def page(found: Mapping[str, Row]) -> str:
    """The page of the docs."""
    rows = {name: row for name, row in found.items() if not row.error.startswith("not built")}
    whole = sum(row.structured >= 0.95 for row in rows.values())
    lines = [
        "# Families",
        "",
        f"What both roads reach in {len(rows)} model types of transformers {transformers.__version__}, tried on tiny random models. Shares are",
        "percentages of the weight matrices inside the blocks, routers apart: what leaves if every channel leaves (attention, MLP and all",
        "the rest, both together), and what unstructured pruning chooses from. *Masked ≡ extracted* is the largest difference, relative",
        "to the scale of the output where that exceeds one, with half of the channels of every unit; where rounding grows beyond",
        f"{TOLERANCE:.0e} on its way through a model, it is taken in fp64. Generation is greedy, with a cache.",
        "What stays dense is named below the table. Types that need other packages or inputs are left out. Made by `python -m benchmarks.family_sweep`.",
        "",
        f"The structured road reaches at least 95 % in {whole} of {len(rows)} types, the unstructured one at least 99 % in "
        f"{sum(row.unstructured >= 0.99 for row in rows.values())}; {sum(map(is_exact, rows.values()))} are exact throughout. "
        f"{sum(map(needs_no_entry, rows.values()))} of them reach 95 % without an entry of the catalog.",
        *_families(found),
        "",
        "## All types",
        "",
        "<!-- figures: families.json types -->",
        "",
        "| model type | towers | attention | MLP | structured | unstructured | prune | search | masked ≡ extracted | generation | reload |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        towers = ", ".join(f"{tower} {100 * share:.0f}" for tower, share in row.towers.items())
        shares = " | ".join(map(_share, (row.attention, row.mlp, row.structured, row.unstructured)))
        words = (row.prune, row.search, row.extract, row.generate, row.reload or row.error)
        cells = " | ".join(_cell(word) for word in words)
        lines.append(f"| {name} | {towers} | {shares} | {cells} |")
    lines += [
        "", "## In published sizes", "",
        "Layers between widths, and what else stays dense, weigh more in tiny models than in those that people use. The same shares of some in",
        "their own sizes, read off the configs:", "",
        "<!-- figures: families.json published-sizes -->", "",
        "| model | attention | MLP | structured | what stays dense |", "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, row in in_published_sizes().items():
        shares = " | ".join(map(_share, (row.attention, row.mlp, row.structured)))
        lines.append(
            f"| {name} | {shares} | {'; '.join(_cell(part, 160) for part in row.dense if '(0%)' not in part) or '–'} |"
        )
    lines += ["", "## What stays dense on the structured road", ""]
    for name, row in rows.items():
        lines += [f"- {name}: " + "; ".join(_cell(part, 160) for part in row.dense)] if row.dense else []
    return "\n".join(lines) + "\n"


def _cell(text: str, longest: int = 60) -> str:
    text = " ".join(text.replace("|", "/").split())
    return (text if len(text) <= longest else text[: longest - 1] + "…") or "–"


def read(file: Path) -> dict[str, Row]:
    return {name: Row(**row) for name, row in json.loads(file.read_text()).items()} if file.exists() else {}


def main(where: str, *words: str) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    file, start = Path(where), time.perf_counter()
    found = read(file)
    asked: Iterable[str] = [word for word in words if word != "--page"]
    for model_type in asked or TYPES:
        if model_type not in found or asked:
            found[model_type] = row = swept(model_type)
            file.write_text(json.dumps({name: asdict(row) for name, row in found.items()}, indent=1))
            print(
                f"{model_type}: {_share(row.attention)} {_share(row.mlp)} {_share(row.structured)} {_share(row.unstructured)} "
                f"{row.extract} {row.generate} {row.reload} {row.error}", flush=True,
            )  # fmt: skip
    if "--page" in words:
        PAGE.write_text(page(found))
    print(f"{sum(map(needs_no_entry, found.values()))} types reach 95 % exactly without an entry of the catalog")
    print(
        f"{len(found)} types, {time.perf_counter() - start:.0f} s; not exact: {[name for name, row in found.items() if not is_exact(row)]}"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
