"""Anatomy: costs that are true, shared and copied modules, and everything it does not know."""

from __future__ import annotations

import copy
import time
from types import MethodType
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    CLIPVisionConfig,
    CLIPVisionModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from prunus import Plan, PrunusError, Search, UPop, anatomy, extract
from prunus.plan import UnitPlan
from tests.families import FAMILIES, IMAGE, PATCH, build
from tests.test_equivalence import random_plan


@pytest.mark.parametrize("name", FAMILIES)
def test_a_channel_costs_what_leaves_with_it(name: str) -> None:
    model = build(name, 7).model
    parts = anatomy(model)
    for unit in (parts.units[0], parts.units[-1]):
        if unit.channels < 2:
            continue
        kept = tuple(range(1, unit.channels))
        plan = Plan(model=parts.model, ratio=0, units={unit.name: UnitPlan(channels=unit.channels, kept=kept)})
        small = extract(model, plan)
        removed = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in small.parameters())
        assert removed == unit.channel_cost


def test_blip_base_costs_what_the_method_says() -> None:
    with torch.device("meta"):
        parts = anatomy(BlipForQuestionAnswering(BlipConfig(vision_config={"image_size": 480})))
    assert set(parts.towers) == {"vision", "text", "decoder"}
    assert {component: len(units) for component, units in parts.components.items()} == {
        "vision.attention": 12, "vision.mlp": 12, "text.attention": 12, "text.cross_attention": 12, "text.mlp": 12,
        "decoder.attention": 12, "decoder.cross_attention": 12, "decoder.mlp": 12,
    }  # fmt: skip
    attention, mlp = parts.components["vision.attention"][0], parts.components["vision.mlp"][0]
    assert (attention.channels, mlp.channels) == (64, 3072)
    assert attention.channel_cost == 12 * (3 * (768 + 1) + 768)
    assert mlp.channel_cost == 768 + 1 + 768


class Pair(nn.Module):
    """A vision tower that is run twice, and its momentum copy."""

    def __init__(self) -> None:
        super().__init__()
        config = CLIPVisionConfig(
            hidden_size=12, num_attention_heads=2, num_hidden_layers=2, intermediate_size=20, image_size=IMAGE,
            patch_size=PATCH,
        )  # fmt: skip
        self.vision_model = CLIPVisionModel(config)
        self.same = self.vision_model
        self.vision_model_m = copy.deepcopy(self.vision_model).requires_grad_(False)
        self.tied = copy.deepcopy(self.vision_model)
        for name, module in self.tied.named_modules():
            for key in list(module._parameters):
                module._parameters[key] = self.vision_model.get_submodule(name)._parameters[key]

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        towers = (self.vision_model, self.same, self.tied, self.vision_model_m)
        return [tower(pixels).last_hidden_state for tower in towers]


def test_shared_modules_count_once_and_copies_follow_their_originals() -> None:
    model = Pair().eval()
    parts = anatomy(model, mirrors={"vision_model_m": "vision_model"})
    assert len(parts) == 4
    assert all(unit.twins and unit.mirrors for unit in parts)
    pixels = torch.randn(2, 3, IMAGE, IMAGE)
    search = Search(model, UPop(ratio=0.5), total_steps=1, mirrors={"vision_model_m": "vision_model"})
    sum(t.square().mean() for t in model(pixels)[:3]).backward()
    search.step()
    wide = model(pixels)
    small = extract(model, search.plan())
    narrow = small(pixels)
    for first, second in zip(wide[:3], narrow[:3], strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)
    copies = dict(small.vision_model_m.named_parameters())
    assert all(p.shape == copies[name].shape for name, p in small.vision_model.named_parameters())
    tied = dict(small.tied.named_parameters())
    assert all(p is tied[name] for name, p in small.vision_model.named_parameters())


def test_a_mirror_that_is_none_is_refused() -> None:
    model = Pair()
    with pytest.raises(PrunusError, match="no module at this path"):
        anatomy(model, mirrors={"absent": "vision_model"})
    with pytest.raises(PrunusError, match="same parameters"):
        anatomy(model, mirrors={"vision_model_m": "vision_model.encoder"})


def test_only_the_copies_of_a_nested_mirror_are_copies() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.model.odd = Pair(), nn.ModuleList([StrangeAttention()])

    parts = anatomy(Holder(), mirrors={"model.vision_model_m": "model.vision_model"})
    assert any(part.path.startswith("model.odd") for part in parts.unmapped)


class OddMlp(nn.Module):
    """Looks like an MLP of known names."""

    def __init__(self, act: Any, norm: bool) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)
        self.activation_fn = act
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.activation_fn(self.fc1(x))
        return self.fc2(F.layer_norm(hidden, (16,)) if self.norm else hidden)


class StrangeAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)


def test_unknown_modules_are_proved_or_named_and_left_dense() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList(
        [OddMlp(F.gelu, norm=False), OddMlp(F.gelu, norm=True), OddMlp(torch.sigmoid, norm=False), StrangeAttention()]
    )
    parts = anatomy(model)
    assert [unit.name for unit in parts] == ["layers.0"]
    named = {part.path: part.reason for part in parts.unmapped}
    assert set(named) == {"layers.1", "layers.2", "layers.3"}
    assert "does not map 0 to 0" in named["layers.2"]
    assert "layers.3" in str(parts)


def widths(model: nn.Module) -> dict[str, int]:
    return {unit.name: unit.channels for unit in anatomy(model)}


def test_a_trial_meets_neither_gates_nor_other_hooks_nor_the_callers_settings() -> None:
    model = build("qwen3", 0).model
    found = widths(model)
    search = Search(model, UPop(ratio=0.5), total_steps=1)
    search.gates.set({unit.name: torch.zeros(unit.channels) for unit in search.units})

    def heard(*_: Any) -> None:
        raise AssertionError("a trial ran through a hook of the model")

    for module in model.modules():
        module.register_forward_pre_hook(heard)
        module.register_forward_hook(heard)
    modes = {name: module.training for name, module in model.train().named_modules()}
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
            assert widths(model) == found
    finally:
        torch.set_default_dtype(torch.float32)
    assert modes == {name: module.training for name, module in model.named_modules()}


def test_forwards_that_were_replaced_are_tried_as_they_are() -> None:
    model = build("qwen3", 0).model
    found = widths(model)
    first, *_ = (module for module in model.modules() if type(module).__name__ == "Qwen3MLP")
    for module in first.modules():
        add_hook_to_module(module, AlignDevicesHook(execution_device="cpu", offload=True, weights_map={}))
    assert widths(model) == found

    patched = build("qwen3", 0).model
    for module in patched.modules():
        if type(module).__name__ == "Qwen3MLP":
            plain = type(module).forward
            module.forward = MethodType(lambda self, x, plain=plain: plain(self, x), module)
    assert widths(patched) == found
    for module in patched.modules():
        if type(module).__name__ == "Qwen3MLP":
            module.forward = MethodType(lambda self, x: 2 * type(self).forward(self, x), module)
    assert not widths(patched)
    assert all("trial run" in part.reason for part in anatomy(patched).unmapped if part.type == "Qwen3MLP")


class Written(OddMlp):
    """Its hidden width stands in the forward, so it cannot be narrowed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(x)).view(*x.shape[:-1], 16))


def test_what_cannot_be_narrowed_says_why() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([Written(F.gelu, norm=False), *(OddMlp(F.gelu, norm=False) for _ in range(4))])
    parametrizations.weight_norm(model.layers[1].fc1)
    prune.l1_unstructured(model.layers[2].fc2, "weight", 0.5)
    weight = model.layers[3].fc1.weight
    model.layers[3].fc1.weight = nn.Parameter(weight.detach().to(torch.int8), requires_grad=False)
    model.layers[4].fc2.register_parameter("scale", nn.Parameter(torch.ones(1)))
    parts = anatomy(model)
    assert not parts.units
    reasons = {part.path: part.reason for part in parts.unmapped}
    expected = (
        "trial run of it failed",
        "remove_parametrizations",
        "prune.remove",
        "quantised",
        "besides those of an MLP",
    )
    for (path, reason), words in zip(sorted(reasons.items()), expected, strict=True):
        assert words in reason, path


def test_adapted_layers_are_called_by_their_name() -> None:
    peft = pytest.importorskip("peft")
    for name, kind in (("llama", "LlamaAttention"), ("qwen3", "Qwen3MLP")):
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"])
        parts = anatomy(peft.get_peft_model(build(name, 0).model, config))
        reasons = {part.reason for part in parts.unmapped if part.type == kind}
        assert len(reasons) == 1
        assert "lora.layer.Linear" in reasons.pop()


def test_a_large_model_is_read_in_seconds() -> None:
    """An 8 B model of a type that the catalog does not name: sizes must not matter, and only once per layer."""
    config = Qwen3Config(
        hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8
    )
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    start = time.process_time()
    assert len(anatomy(model)) == 36
    assert time.process_time() - start < 3


def test_the_table_names_every_component() -> None:
    parts = anatomy(build("blip2_t5", 0).model)
    text = str(parts)
    assert all(component in text for component in parts.components)
    assert "embeddings" in text


@pytest.mark.parametrize("name", ["clip", "llava"])
def test_plans_survive_a_model_that_is_frozen_in_part(name: str) -> None:
    case = build(name, 0)
    tower = anatomy(case.model).units[0]
    for parameter in case.model.get_submodule(tower.path).parameters():
        parameter.requires_grad_(False)
    small = extract(case.model, random_plan(case.model, 0))
    assert not any(p.requires_grad for p in small.get_submodule(tower.path).parameters())
