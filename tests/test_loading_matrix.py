"""A sample of `python -m benchmarks.loading_matrix`: whatever loads the dense folder loads the narrow one, with its values."""

from __future__ import annotations

import pytest
from benchmarks.loading_matrix import WAYS, check, classes_for, saved, towers

SAMPLE = [
    ("llama", "LlamaModel", "disk"),
    ("llama", "LlamaForSequenceClassification", "labels"),
    ("qwen2", "Qwen2ForCausalLM", "torchao"),
    ("bert", "BertForTokenClassification", "bf16"),
    ("clip", "CLIPVisionModel", "plain"),
    ("clip", "CLIPForImageClassification", "plain"),
    ("vit", "ViTModel", "module"),
    ("vit", "ViTForImageClassification", "labels"),
    ("t5", "T5EncoderModel", "plain"),
    ("blip_vqa", "BlipForConditionalGeneration", "plain"),
    ("blip_itm", "BlipForQuestionAnswering", "plain"),
    ("opt", "OPTModel", "plain"),
    ("llava", "LlavaModel", "disk"),
    ("blip2_t5", "Blip2ForConditionalGeneration", "bf16"),
]


@pytest.mark.parametrize(("family", "name", "way"), SAMPLE)
def test_a_class_loads_the_narrow_folder_as_it_loads_the_dense_one(family: str, name: str, way: str, tmp_path) -> None:
    if way == "torchao":
        pytest.importorskip("torchao")
    pair = saved(family, tmp_path)
    cls = next(cls for cls in classes_for(pair) if cls.__name__ == name)
    assert check(pair, cls, next(w for w in WAYS if w.name == way)) is None


def test_a_quantiser_is_held_to_what_it_can_do_to_dense_layers() -> None:
    pytest.importorskip("torchao")
    torchao = next(way for way in WAYS if way.name == "torchao")
    assert torchao.takes(2, 24)
    assert not torchao.takes(1, 24)


@pytest.mark.parametrize("family", ["clip", "blip_vqa", "t5", "llava"])
def test_every_tower_is_saved_and_loaded_alone(family: str, tmp_path) -> None:
    found = dict(towers(saved(family, tmp_path), tmp_path / "towers"))
    assert found
    plain = WAYS[0]
    said = {path: check(pair, type(pair.small), plain) for path, pair in found.items()}
    assert all(reason in (None, "") for reason in said.values()), said
    assert None in said.values()
