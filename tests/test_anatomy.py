"""Anatomy: costs that are true, shared and copied modules, and everything it does not know."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BlipConfig, BlipForQuestionAnswering, CLIPVisionConfig, CLIPVisionModel

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
