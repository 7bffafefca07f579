"""Batches reach a model on its device, in its type; what is no batch is refused before anything changes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from prunus import ECoFLaP, WalkOptions, Wanda, allocate, prune
from prunus.batches import bf16_autocast, call_with_batch, for_model, has_bf16, input_dtype, runs_in_bf16
from prunus.losses import own_loss
from prunus.tasks import EasyVQA

QUIET = WalkOptions(progress=False)
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}


def vit(dtype: torch.dtype = torch.float32) -> tf.PreTrainedModel:
    torch.manual_seed(0)
    return tf.ViTForImageClassification(tf.ViTConfig(**SIZES, image_size=16, patch_size=8)).to(dtype).eval()


@pytest.mark.parametrize("instructions", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
def test_bf16_is_for_devices_that_have_instructions_for_it(
    instructions: bool, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the record of a walk says in what was computed."""
    monkeypatch.setattr(
        torch.ops, "mkldnn", SimpleNamespace(_is_mkldnn_bf16_supported=lambda: instructions), raising=False
    )
    model = vit()
    assert has_bf16("cpu") == instructions
    assert has_bf16("cuda")
    assert runs_in_bf16(model, wanted) == (instructions and wanted)
    with bf16_autocast(model, wanted):
        assert torch.is_autocast_enabled("cpu") == (instructions and wanted)
        assert not torch.is_autocast_cache_enabled()
    batches = [{"pixel_values": torch.randn(2, 3, 16, 16)}]
    plan = prune(model, Wanda(sparsity=0.5), batches, options=WalkOptions(progress=False, bf16=wanted))
    assert plan.calibration["bf16"] == (instructions and wanted)


def test_a_build_without_onednn_has_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(), raising=False)
    assert not has_bf16("cpu")


class Everything(nn.Module):
    """Says what it was given."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.table = nn.Embedding(3, 2, dtype=torch.float64)
        self.patches = nn.Conv2d(3, 2, 2, dtype=dtype)

    def forward(self, **inputs: object) -> dict[str, object]:
        return inputs


def test_floating_inputs_get_the_type_of_what_reads_them_and_integers_keep_theirs() -> None:
    model = Everything(torch.float16)
    ids = torch.tensor([[1, 2]])
    given = call_with_batch(
        model, {"ids": ids, "mask": ids > 1, "pixels": [torch.ones(1, dtype=torch.float64)], "name": "x", "n": 3}
    )
    assert given["ids"].dtype == torch.int64  # type: ignore[index]
    assert given["mask"].dtype == torch.bool  # type: ignore[index]
    assert given["pixels"][0].dtype == torch.float16  # type: ignore[index]
    assert (given["name"], given["n"]) == ("x", 3)  # type: ignore[index]
    assert input_dtype(model) == torch.float16
    assert input_dtype(nn.Embedding(3, 2, dtype=torch.bfloat16)) == torch.bfloat16
    assert input_dtype(nn.ReLU()) is None
    assert for_model(torch.ones(1), model, torch.device("meta")).device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.float16])
def test_every_verb_takes_pixels_of_any_type(dtype: torch.dtype, given: torch.dtype) -> None:
    pixels = torch.randn(2, 3, 16, 16).to(torch.float16)  # every type holds these numbers, or rounds them the same way
    batch = {"pixel_values": pixels.to(given), "labels": torch.tensor([0, 1])}
    same = {**batch, "pixel_values": pixels.to(dtype)}
    one, other = vit(dtype), vit(dtype)
    assert torch.equal(own_loss(one, batch), own_loss(one, same))
    plans = [allocate(one, ECoFLaP(sparsity=0.5), [b], progress=False) for b in (batch, same)]
    assert plans[0].matrices == plans[1].matrices
    prune(one, Wanda(), [batch], options=QUIET)
    prune(other, Wanda(), [same], options=QUIET)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


class Blip(nn.Module):
    """As much of a BLIP as `EasyVQA.predict` calls, on another device, whose tensors do not mix with those of the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, device="meta"), requires_grad=False)
        self._hf_hook = SimpleNamespace(execution_device="meta")

    def vision_model(self, pixel_values: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=pixel_values.flatten(2) * self.weight)

    def text_encoder(self, **inputs: Tensor) -> Any:
        states = sum(value.float().sum() for value in inputs.values()) * self.weight
        return SimpleNamespace(last_hidden_state=states)

    def text_decoder(self, labels: Tensor, **inputs: Tensor) -> Any:
        loss = sum(value.float().sum() for value in inputs.values()) * self.weight
        return SimpleNamespace(loss=loss, logits=labels[..., None] * self.weight)


def test_the_loss_of_a_task_places_its_batch_where_the_model_is() -> None:
    batch = {
        "pixel_values": torch.ones(1, 2, 2, 2), "image_of_question": torch.zeros(2, dtype=torch.long),
        "input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.ones(2, 3, dtype=torch.long),
        "labels": torch.ones(2, 3, dtype=torch.long),
    }  # fmt: skip
    prediction = EasyVQA().predict(Blip(), batch)
    for value in (prediction.loss, prediction.logits, prediction.counted):
        assert value.is_meta
