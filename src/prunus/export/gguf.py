"""GGUF, the file of llama.cpp and its like: plain LLaMAs with a byte-level tokenizer, by the package `gguf` and its own map of names."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from prunus.checkpoint import load_model, local_folder, plan_of, understood
from prunus.errors import PrunusError, refusing
from prunus.refusals import refuse_unusable
from prunus.storage import refuse_taken, room_on_disk, vacant_place

PREPARED = {"Digits": "smollm", "Split": "llama-bpe"}
"""What splits a text before a byte-level tokenizer sees it → what llama.cpp calls that."""
NORMAL, CONTROL = 1, 3
"""Types of tokens in GGUF."""


def write_gguf(path: str | Path, file: str | Path) -> Path:
    """Writes a saved LLaMA, dense, with zeros, or narrowed to an ordinary config (`plain: true`), in fp32, with its tokenizer.

    The file takes its name when transformers has read it and found every weight to the bit and the tokens of some texts.

    Args:
        path: folder of the model, or hub id.
        file: to be made.

    Raises:
        PrunusError: the package is missing; the model, its widths or its tokenizer are none that the file can say.
    """
    if find_spec("gguf") is None:
        raise PrunusError("--to", "gguf", "it needs gguf; run: pip install 'prunus[export]'")
    place = vacant_place(file, "file")
    if place.exists():
        raise PrunusError("file", str(place), "it is there already, and a folder; take a new name")
    source = local_folder(path)
    model: Any = load_model(source)
    _refuse(model)
    with understood(str(source), doing="read the tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    weights = dict(_named(model))
    around = Path(os.path.realpath(place)).parent
    around.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=around) as folder, room_on_disk(around, place, "file"):
        partial = Path(folder, "model.gguf")
        _write(partial, model.config, weights, tokenizer)
        with refusing("gguf", str(path), "transformers cannot read what was written"):
            _check(partial, model, tokenizer)
        refuse_taken(place, "file")
        os.replace(partial, os.path.realpath(place))
    return place


def _refuse(model: Any) -> None:
    """What a file of this architecture cannot say."""
    name, config = type(model).__name__, model.config
    refuse_unusable(model, "")
    if name != "LlamaForCausalLM":
        raise PrunusError("model", name, "only LlamaForCausalLM is written; for others take llama.cpp's own converter")
    if plan_of(model) is not None:
        raise PrunusError("model", name, "its layers have widths that a GGUF cannot say; narrow it with plain: true")
    rope = config.rope_parameters
    for entry, value, meant in (
        ("rope_parameters.rope_type", rope.get("rope_type", "default"), "default"),
        ("attention_bias", config.attention_bias, False),
        ("mlp_bias", config.mlp_bias, False),
        ("hidden_act", config.hidden_act, "silu"),
    ):
        if value != meant:
            raise PrunusError(
                f"config.{entry}", value, f"a GGUF of a LLaMA says {meant!r} here; take llama.cpp's own converter"
            )


def _named(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The weights by their names in GGUF.

    Raises:
        PrunusError: the map of names of `gguf` lacks one.
    """
    import gguf

    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.named_parameters():
        called = names.get_name(name, try_suffixes=(".weight",))
        if called is None:
            raise PrunusError("weights", name, "the package gguf has no name for it")
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        kept = weight.detach().float()
        yield called, kept if heads is None else _interleaved(kept, heads)


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows with the two of a rotary pair side by side, as llama.cpp rotates them: (heads, 2, pairs) → (heads, pairs, 2)."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns).contiguous()


def _write(file: Path, config: Any, weights: dict[str, Tensor], tokenizer: Any) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_tokenizer(writer, config, tokenizer)
    for name, weight in weights.items():
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, config: Any, tokenizer: Any) -> None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    said = {} if backend is None else json.loads(backend.to_str())
    split = said.get("pre_tokenizer") or {}
    parts = [part["type"] for part in split.get("pretokenizers", [split]) if part]
    model = said.get("model", {})
    if model.get("type") != "BPE" or "ByteLevel" not in parts:
        raise PrunusError(
            "tokenizer", type(tokenizer).__name__, "it is no byte-level BPE, the only kind that is written; take llama.cpp's own converter"
        )  # fmt: skip
    tokens = [f"[PAD{place}]" for place in range(config.vocab_size)]
    types = [NORMAL] * config.vocab_size
    for token, place in tokenizer.get_vocab().items():
        if place >= len(tokens):
            more = f"its number is {place:,}, and the model has {len(tokens):,} embeddings; give it as many as tokens"
            raise PrunusError("tokenizer", token, more)
        tokens[place] = token
    for place in tokenizer.added_tokens_decoder:
        types[place] = CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PREPARED.get(parts[0], "gpt-2"))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    for name in ("bos", "eos", "unk", "pad"):
        place = getattr(tokenizer, f"{name}_token_id")
        if place is not None:
            getattr(writer, f"add_{name}_token_id")(place)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _check(file: Path, model: Any, tokenizer: Any) -> None:
    """What transformers reads of the file is what was written."""
    again = type(model).from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    read = dict(again.named_parameters())
    for name, weight in model.named_parameters():
        if not torch.equal(read[name].detach(), weight.detach().float()):
            raise PrunusError("weights", name, "it is read from the file as something else")
    words = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for text in ("What is in the picture? 1234 circles,\n  and more…", "Ça n'est pas 3.5 %"):
        if words(text, add_special_tokens=False)["input_ids"] != tokenizer(text, add_special_tokens=False)["input_ids"]:
            raise PrunusError("tokenizer", text, "it is split otherwise as read from the file")
