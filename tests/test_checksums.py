"""Checksums: what was changed on disk is refused by the tensor's name, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from prunus import PrunusError
from prunus.checkpoint.checksums import CHECKSUMS, verify, write_checksums
from tests.families import build

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build("vit", 0).model


@pytest.fixture
def folder(model: PreTrainedModel, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "saved")
    write_checksums(tmp_path / "saved")
    return tmp_path / "saved"


def two(tensors: Tensors) -> tuple[str, str]:
    """Names of two tensors of one shape."""
    first = next(n for n in tensors if sum(t.shape == tensors[n].shape for t in tensors.values()) > 1)
    return first, next(n for n, t in tensors.items() if n != first and t.shape == tensors[first].shape)


def one_bit(tensors: Tensors) -> str:
    name = next(iter(tensors))
    tensors[name].flatten().view(torch.uint8)[3] ^= 1
    return name


def swapped(tensors: Tensors) -> str:
    one, other = two(tensors)
    tensors[one], tensors[other] = tensors[other], tensors[one]
    return one


def not_a_number(tensors: Tensors) -> str:
    name = list(tensors)[-1]
    tensors[name].flatten()[0] = torch.nan
    return name


def other_type(tensors: Tensors) -> str:
    name = next(iter(tensors))
    tensors[name] = tensors[name].view(torch.int32)
    return name


def other_shape(tensors: Tensors) -> str:
    name = next(n for n, t in tensors.items() if t.ndim == 2)
    tensors[name] = tensors[name].reshape(-1)
    return name


def removed(tensors: Tensors) -> str:
    name = next(iter(tensors))
    del tensors[name]
    return name


def renamed(tensors: Tensors) -> str:
    name = next(iter(tensors))
    tensors[f"{name}s"] = tensors.pop(name)
    return name


def added(tensors: Tensors) -> str:
    tensors["another"] = torch.zeros(1)
    return "another"


DAMAGES = [one_bit, swapped, not_a_number, other_type, other_shape, removed, renamed, added]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_change_of_a_tensor_is_refused_by_its_name(damage: Callable[[Tensors], str], folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    name = damage(tensors)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(PrunusError, match=rf"weights = '{name}'.*{CHECKSUMS}"):
        verify(folder)


def test_a_whole_folder_passes_and_one_without_checksums_is_not_known(folder: Path) -> None:
    assert verify(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(dict(reversed(tensors.items())), folder / "model.safetensors", {"format": "pt", "other": "metadata"})
    assert verify(folder), "the order of tensors in the file is nobody's business"
    (folder / CHECKSUMS).unlink()
    assert not verify(folder)


def test_shards_are_those_of_the_index(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    save_file({"stray": torch.zeros(1)}, tmp_path / "stray.safetensors")
    write_checksums(tmp_path)
    assert verify(tmp_path)
    assert "stray" not in json.loads((tmp_path / CHECKSUMS).read_text())["tensors"]
    shard = sorted(tmp_path.glob("model-*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(PrunusError, match=f"{shard.name}.*damaged"):
        verify(tmp_path)
    shard.unlink()
    with pytest.raises(PrunusError, match=f"{shard.name}.*no such file"):
        verify(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"weight_map": 1}', '{"weight_map": {"a": "../b"}}', '{"weight_map": {"a": 1}}']
)
def test_damaged_indices_are_refused(text: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(PrunusError, match="index"):
        verify(folder)


def test_the_config_belongs_to_the_weights(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "transformers_version": "6.0.0"}))
    assert verify(folder)
    for change in ({"hidden_act": "relu"}, {"added": 1}):
        path.write_text(json.dumps({**config, **change}))
        with pytest.raises(PrunusError, match=rf"config\.{next(iter(change))}"):
            verify(folder)
    path.write_text("{")
    with pytest.raises(PrunusError, match="no JSON object"):
        verify(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"config": {}, "tensors": {"a": 1}}', '{"format": "other"}', "\x00"]
)
def test_damaged_checksums_are_refused(text: str, folder: Path) -> None:
    (folder / CHECKSUMS).write_text(text)
    with pytest.raises(PrunusError, match="checksums"):
        verify(folder)
