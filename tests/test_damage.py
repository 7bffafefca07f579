"""Damaged and implausible checkpoints: one clear error that names the file, tensor or entry, from every verb that loads."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from torch.utils.data import TensorDataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from prunus import PrunusError, Wanda, load_model, prune_folder
from prunus.checkpoint import bare_model, random_model
from prunus.checkpoint.checksums import verify
from prunus.cli.commands import inspect
from prunus.evaluation import evaluate_here
from prunus.tasks import Noise, Text
from prunus.training import Training, finetune
from prunus.training.trainer import last_complete
from tests.families import build

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 50,
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build("vit", 0).model


@pytest.fixture
def folder(model: PreTrainedModel, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize(
    ("change", "entry"),
    [
        ({"architectures": 1}, "architectures"),
        ({"architectures": [1]}, "architectures"),
        ({"architectures": ["print"]}, "architectures"),
        ({"model_type": None}, "model_type"),
        ({"model_type": {"a": 1}}, "model_type"),
        ({"model_type": "nothing"}, "model_type"),
        ({"hidden_size": -16}, "hidden_size"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hidden_size": 16.5}, "hidden_size"),
        ({"hidden_size": {"a": 1}}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 10**12}, "fit into"),
        ({"hidden_size": 10**6, "vocab_size": 10**9}, "fit into"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": -2}, "num_attention_heads"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers"),
        ({"num_labels": 10**12}, "num_labels"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"hidden_act": "nothing"}, "hidden_act"),
        ({"hidden_act": 7}, "hidden_act"),
        ({"rope_parameters": 3}, "rope_parameters"),
    ],
    ids=str,
)
def test_configs_that_cannot_be_meant_are_refused_by_entry(change: dict[str, Any], entry: str) -> None:
    with pytest.raises(PrunusError, match=rf"model\.random.*({entry})"):
        random_model({**LLAMA, **change})


def test_what_a_config_builds_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.checkpoint.plausible.MODULE_LIMIT", 100)
    with pytest.raises(PrunusError, match="more than 100 modules"):
        random_model({**LLAMA, "num_hidden_layers": 50})


def test_a_plausible_config_is_built() -> None:
    assert random_model(LLAMA).config.hidden_size == 16


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"a": ' * 5000, "\x00\xff", '{"model_type": "vit", "hidden_size": NaN}']
)
def test_a_damaged_config_is_refused(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    for verb in (load_model, bare_model):
        with pytest.raises(PrunusError, match=r"config\.json"):
            verb(str(folder))


def test_missing_and_renamed_tensors_are_refused_by_name(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "vit.layernorm.weight"
    assert name in tensors
    for change in ({}, {"other": tensors[name]}):
        save_file({**{n: t for n, t in tensors.items() if n != name}, **change}, file, {"format": "pt"})
        with pytest.raises(PrunusError, match=rf"weights = '{name}'"):
            load_model(folder)


def test_a_tensor_of_another_shape_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["vit.layernorm.weight"] = torch.ones(3)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(PrunusError, match=str(folder)):
        load_model(folder)


@pytest.mark.parametrize("cut", [0, 4, 8, 100, -1])
def test_truncated_weights_are_refused_by_file(cut: int, folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(PrunusError, match=str(folder)):
        load_model(folder)


def test_more_weights_than_files_hold_are_never_built(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 10**8}))
    with pytest.raises(PrunusError, match="many more weights than its files hold"):
        load_model(folder)


class Trap:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def test_no_pickle_is_opened(folder: Path, tmp_path: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "opened")))
    load_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(PrunusError, match=r"no \*\.safetensors"):
        load_model(folder)
    assert not (tmp_path / "opened").exists()


def test_values_too_long_to_print_are_cut() -> None:
    assert len(str(PrunusError("field", "x" * 10**6, "remedy"))) < 500
    assert "too long" in str(PrunusError("field", 10**5000, "remedy"))


def changed(folder: Path) -> None:
    file = folder / "model.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)


def test_our_verbs_compare_checksums(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batches = [build("vit", 0).inputs]
    prune_folder(folder, tmp_path / "pruned", Wanda(sparsity=0.5), batches)
    assert verify(tmp_path / "pruned"), "what is pruned on disk has checksums of its own"
    inspect(str(tmp_path / "pruned"), verified=True)
    assert "as they were saved" in capsys.readouterr().out
    changed(tmp_path / "pruned")
    for verb in (
        lambda: load_model(tmp_path / "pruned"),
        lambda: prune_folder(tmp_path / "pruned", tmp_path / "again", Wanda(sparsity=0.6), batches),
        lambda: inspect(str(tmp_path / "pruned"), verified=True),
        lambda: evaluate_here(tmp_path / "pruned", Noise(), 1),
    ):
        with pytest.raises(PrunusError, match="since it was saved"):
            verb()
    assert not (tmp_path / "again.partial").exists()


class Tiny(torch.nn.Module):
    def __init__(self, start: float):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((4,), start))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x).sum()


ONES = TensorDataset(torch.ones(64, 4))
SHORT = Training(steps=4, batch_size=2, learning_rate=1e-3, bf16=False, save_every=2)


def train(model: torch.nn.Module, folder: Path, factor: float = 1.0) -> None:
    finetune(model, SHORT, folder, ONES, lambda items: {"x": items[0][0]}, lambda m, batch: factor * m(**batch))


def test_a_training_ends_at_the_first_loss_that_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(PrunusError, match="loss of step 1"):
        train(Tiny(torch.inf), tmp_path)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_folder_of_others_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-500").mkdir()
    with pytest.raises(PrunusError, match="checkpoint-500"):
        train(Tiny(1.0), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-500"]


def test_a_spoilt_weight_is_not_kept(tmp_path: Path) -> None:
    model = Tiny(1.0)
    model.register_parameter("other", torch.nn.Parameter(torch.tensor([torch.nan])))
    with pytest.raises(PrunusError, match=r"other.*after step 2"):
        train(model, tmp_path)
    assert last_complete(tmp_path) is None


@pytest.mark.parametrize(
    "name", ["trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"]
)
def test_a_damaged_training_is_refused_by_its_checkpoint(name: str, tmp_path: Path) -> None:
    train(Tiny(1.0), tmp_path)
    (tmp_path / "checkpoint-4" / "complete").unlink()
    (tmp_path / "checkpoint-2" / name).write_bytes(pickle.dumps(Trap(tmp_path / "opened")))
    with pytest.raises(PrunusError, match="checkpoint-2"):
        train(Tiny(1.0), tmp_path)
    assert not (tmp_path / "opened").exists()
    (tmp_path / "training.json").write_text("[")
    with pytest.raises(PrunusError, match=r"training\.json"):
        train(Tiny(1.0), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "leave none to predict"),
        (b"a", "leave none to predict"),
        (bytes(range(256)), "UTF-8"),
        (b"a\0b" * 99, "zero bytes"),
    ],
)
def test_texts_that_are_none_are_refused(content: bytes, message: str, text_model: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(PrunusError, match=message):
        evaluate_here(text_model, Text(evaluation=tmp_path / "text", length=8), 1)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of letters, with a tokenizer that knows more of them than it does."""
    folder = tmp_path_factory.mktemp("letters")
    random_model({**LLAMA, "max_position_embeddings": 32}).save_pretrained(folder)
    letters = Tokenizer(WordLevel({chr(97 + n) if n < 26 else f"w{n}": n for n in range(60)}, unk_token="a"))
    letters.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="a").save_pretrained(folder)
    return folder


def test_texts_fit_the_model(text_model: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a b c d " * 20)
    assert "perplexity" in evaluate_here(text_model, Text(evaluation=tmp_path / "text", length=8), 1).metrics
    with pytest.raises(PrunusError, match="32 positions"):
        evaluate_here(text_model, Text(evaluation=tmp_path / "text", length=33), 1)
    with pytest.raises(PrunusError, match="32 positions"):
        evaluate_here(text_model, Noise(length=33), 1)
    (tmp_path / "text").write_text("a w59 " * 20)
    with pytest.raises(PrunusError, match="knows 50 tokens"):
        evaluate_here(text_model, Text(evaluation=tmp_path / "text", length=8), 1)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_tokenizers_are_refused(name: str, text_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(text_model, tmp_path / "model")
    (folder / name).write_text("[")
    (tmp_path / "text").write_text("a b c d " * 20)
    with pytest.raises(PrunusError, match="tokenizer"):
        evaluate_here(folder, Text(evaluation=tmp_path / "text", length=8), 1)


@pytest.mark.parametrize(
    "text", ["", "[", "[]", "{}", "null", '{"copied": true, "request": "", "calibration": null, "done": [1]}']
)
def test_damaged_journals_are_refused(text: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "prunus-journal.json").write_text(text)
    with pytest.raises(PrunusError, match=r"journal.*damaged"):
        prune_folder(folder, tmp_path / "out", Wanda(sparsity=0.5), [build("vit", 0).inputs])
