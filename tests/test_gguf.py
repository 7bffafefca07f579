"""GGUF files of plain LLaMAs: every weight to the bit, the same tokens, and a word where the format cannot say a model."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from typer.testing import CliRunner

from prunus import Calibrated, Depth, Magnitude, PrunusError, drop_blocks, extract, narrow, prune
from prunus.cli import app
from prunus.export import write_gguf
from tests.test_equivalence import random_plan

gguf = pytest.importorskip("gguf")
SIZES = {
    "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def model(**more: Any) -> Any:
    torch.manual_seed(0)
    return tf.LlamaForCausalLM(tf.LlamaConfig(**{**SIZES, **more})).eval()


def save(made: Any, folder: Path) -> Path:
    """With a byte-level tokenizer that has learned some words."""
    spoken = Tokenizer(models.BPE())
    spoken.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spoken.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    spoken.train_from_iterator(["What is in the picture? The circles are in the picture."] * 9, trainer)
    made.save_pretrained(folder)
    tf.PreTrainedTokenizerFast(tokenizer_object=spoken, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("done", ["dense", "zeros", "plain", "heads", "shorter"])
def test_a_plain_llama_is_written_and_read_again(done: str, tmp_path: Path) -> None:
    made = model(num_attention_heads=4, num_key_value_heads=2) if done == "heads" else model()
    if done == "zeros":
        prune(made, Magnitude(sparsity=0.5), [{"input_ids": IDS}])
    if done == "plain":
        settings = Calibrated(ratio=0.3, plain=True, include=("*mlp*",), compensation="none")
        made, _ = narrow(made, settings, [{"input_ids": IDS}])
    if done == "heads":
        made, _ = narrow(made, Calibrated(ratio=0.4, plain=True, attention="heads"), [{"input_ids": IDS}])
        assert (made.config.num_attention_heads, made.config.num_key_value_heads, made.config.head_dim) == (2, 1, 4)
    if done == "shorter":
        made, _ = drop_blocks(made, Depth(blocks=1), [{"input_ids": IDS}])
    folder = save(made, tmp_path / "model")
    told = CliRunner().invoke(app, ["export", str(folder), "--to", "gguf", "--out", str(tmp_path / "made.gguf")])
    assert told.exit_code == 0, told.output
    again = tf.LlamaForCausalLM.from_pretrained(tmp_path, gguf_file="made.gguf", dtype=torch.float32).eval()
    assert again.config.intermediate_size == made.config.intermediate_size
    assert (made.config.intermediate_size < 24) == (done in ("plain", "heads"))
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, made(IDS).logits)
    fields = gguf.GGUFReader(tmp_path / "made.gguf").fields
    assert fields["llama.attention.key_length"].parts[-1][0] == made.config.head_dim
    with pytest.raises(PrunusError, match="there already"):
        write_gguf(folder, tmp_path / "made.gguf")


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"attention_bias": True}, "config.attention_bias"),
        ({"hidden_act": "gelu"}, "config.hidden_act"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "config.rope_parameters.rope_type",
        ),
    ],
)
def test_configs_that_the_file_cannot_say_are_refused(more: Any, field: str, tmp_path: Path) -> None:
    folder = save(model(**more), tmp_path / "model")
    with pytest.raises(PrunusError, match="converter") as refused:
        write_gguf(folder, tmp_path / "made.gguf")
    assert refused.value.field == field
    assert not (tmp_path / "made.gguf").exists()


def test_irregular_widths_are_refused(tmp_path: Path) -> None:
    made = model()
    folder = save(extract(made, random_plan(made, 0)), tmp_path / "model")
    with pytest.raises(PrunusError, match="plain: true"):
        write_gguf(folder, tmp_path / "made.gguf")


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = save(model(), tmp_path / "model")
    words = Tokenizer(models.WordLevel({"<s>": 0, "what": 1}, unk_token="<s>"))
    tf.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    with pytest.raises(PrunusError, match="no byte-level BPE"):
        write_gguf(folder, tmp_path / "made.gguf")
    assert not list(tmp_path.glob("*.gguf"))


def test_more_tokens_than_embeddings_are_refused(tmp_path: Path) -> None:
    folder = save(model(vocab_size=280), tmp_path / "model")
    with pytest.raises(PrunusError, match="280 embeddings") as refused:
        write_gguf(folder, tmp_path / "made.gguf")
    assert refused.value.field == "tokenizer"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(writer: Any) -> None:
        raise OSError("4800 requested and 0 written")  # numpy's words

    folder = save(model(), tmp_path / "model")
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(PrunusError, match="no room for it on the disk"):
        write_gguf(folder, tmp_path / "made.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
