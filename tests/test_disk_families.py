"""Pruning from disk over model types of transformers: a sample of `benchmarks.disk_sweep`, and what is merged while loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.disk_sweep import compare
from benchmarks.tiny_models import build
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING

from prunus.checkpoint.loading import without_weights
from prunus.checkpoint.naming import groups


@pytest.mark.parametrize(
    ("model_type", "dtype"),
    [
        ("detr", "float32"),  # a backbone of another type
        ("mllama", "float32"),  # gates that no module owns alone
        ("siglip2", "bfloat16"),  # position embeddings resized from the weight
        ("idefics3", "float16"),
        ("deberta-v2", "bfloat16"),  # relative positions shared by all layers
        ("qwen2_audio", "float32"),
        ("layoutlmv3", "float32"),
        ("qwen3_vl_moe", "bfloat16"),
        ("mixtral", "float32"),  # experts merged while loading
        ("kimi_k25", "float32"),  # names of old
    ],
)
def test_disk_and_memory_agree(model_type: str, dtype: str, tmp_path: Path) -> None:
    assert compare(build(model_type), tmp_path, getattr(torch, dtype)) == "same"


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_vl_moe", "deepseek_v3", "molmo2_text", "kimi_k25"])
def test_what_is_merged_while_loading_is_written_back_as_it_was(model_type: str, tmp_path: Path) -> None:
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this release of transformers has no {model_type}")
    build(model_type).model.save_pretrained(tmp_path)
    files = load_file(tmp_path / "model.safetensors")
    model, shards = without_weights(tmp_path)
    found = groups(model, shards.places)
    assert sorted(key for group in found for key in group.keys) == sorted(files)
    loaded = type(model).from_pretrained(tmp_path).state_dict()
    for group in found:
        tensors = group.load(model, lambda key: files[key].clone())
        for name, tensor in tensors.items():
            assert torch.equal(tensor, loaded[name])
        back = group.save(model, tensors)
        assert back.keys() == group.keys.keys()
        for key, tensor in back.items():
            assert torch.equal(tensor, files[key])
    assert model_type == "kimi_k25" or any(group.converter is not None for group in found)
