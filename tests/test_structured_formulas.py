"""Every formula of the structured road at a point worked out by hand, and the published update through the public way.

Nothing here calls one part of the road to check another: expected values are numbers, or a plain sum in the test.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BlipTextConfig,
    CLIPConfig,
    CLIPModel,
    DeiTConfig,
    DeiTModel,
    LlamaConfig,
    LlamaModel,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.blip.modeling_blip_text import BlipTextModel

import prunus.structured.search
from prunus import (
    Chance,
    Everyone,
    GateGradient,
    Plan,
    Progressive,
    PrunusError,
    Search,
    Structured,
    UPop,
    anatomy,
    extract,
)
from prunus.anatomy import Attention, Mlp, describe
from prunus.anatomy.forwards import NarrowRotation, fused_attention, keep_rotation
from prunus.plan import UnitPlan
from prunus.structured.closing.schedules import linear
from prunus.structured.scores import gate_gradient, standardise
from prunus.structured.selection import select, select_as_published
from tests.fake_devices import devices, on
from tests.shared import golden


class OneHead(nn.Module):
    """One head of a given width, which has an entry in the catalog; the gradient of gate j is that of q's weight j."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(1, width, bias=False) for _ in range(3))
        self.out_proj = nn.Linear(width, 1)
        self.head_dim = width


class Hidden(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(1, width, bias=False), nn.Linear(width, 1)
        self.activation_fn = F.gelu


describe(OneHead, Attention("q_proj", "k_proj", "v_proj", "out_proj"))
describe(Hidden, Mlp("fc1", "fc2", activation="activation_fn"))


def model_of(widths: dict[str, int]) -> nn.Module:
    """A model whose units have these names and widths; attentions are those whose name says so. All weights are one."""
    root = nn.Module()
    for name, width in widths.items():
        *parents, last = name.split(".")
        holder = root
        for parent in parents:
            if parent not in holder._modules:
                holder.add_module(parent, nn.Module())
            holder = holder.get_submodule(parent)
        holder.add_module(last, OneHead(width) if "attention" in name else Hidden(width))
    for parameter in root.parameters():
        nn.init.ones_(parameter)
    return root


def feed(search: Search, gradients: dict[str, Any]) -> None:
    """One step at which ∂L/∂ζ of each unit is as given. While gates are one, that is the gradient of the first producer."""
    for unit in search.units:
        first = search.model.get_submodule(unit.linear_paths[0])
        gradient = torch.as_tensor(gradients[unit.name], dtype=torch.float32)
        first.weight.grad = gradient[:, None] * search.gates.values[unit.name][:, None]
    search.step()


def kept(search: Search) -> dict[str, list[int]]:
    return {name: mask.nonzero().flatten().tolist() for name, mask in search.masks.items()}


# The published update

WHEN = {0: (51, 1), 1: (3, 1), 2: (3, 2), 3: (3, 2), 4: (101, 73), 5: (11, 3)}
"""Fixture → steps T and step t at which a linear schedule, p·t/(T − 1), asks for its p_t."""


@pytest.mark.parametrize("case", WHEN)
def test_a_search_makes_the_published_update(case: int) -> None:
    """Half of the channels get their gradient at step t − 1, the others at step t: G is the sum."""
    tensors = load_file(golden("upop_update.safetensors"))
    about = json.loads(golden("upop_update.json").read_text())[case]
    gradients, masks = (
        {name.removeprefix(f"{case}.{kind}."): tensor for name, tensor in tensors.items() if f"{case}.{kind}." in name}
        for kind in ("gradient", "mask")
    )
    steps, t = WHEN[case]
    method = UPop(ratio=about["p"], cost="reference", schedule="linear", interval=t + 1)
    search = Search(model_of({name: len(gradient) for name, gradient in gradients.items()}), method, steps)
    for step in range(t + 1):
        share = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
        if step >= t - 1:
            for name, gradient in gradients.items():
                share[name][step - t + 1 :: 2] = gradient[step - t + 1 :: 2]
        feed(search, share)
    assert search.course == [(t + 1, pytest.approx(about["p_t"]), search.ratio)]
    for name, mask in masks.items():
        torch.testing.assert_close(search.gates.values[name], mask, msg=name)
        assert torch.equal(search.masks[name], mask == 1), name


# Scores


def test_the_gate_gradient_of_one_neuron() -> None:
    """ζ = .5, two producers: (⟨(2, −1), (3, 4)⟩ + 5 · (−.5) + ⟨(1, 1), (2, −3)⟩) / .5 = (2 − 2.5 − 1) / .5."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj = nn.Linear(2, 1), nn.Linear(2, 1, bias=False)
            self.down_proj = nn.Linear(1, 2)

    describe(Gated, Mlp("up_proj", "down_proj", gate="gate_proj"))
    model = nn.ModuleList([Gated()])
    for layer, weight, slope in (("gate_proj", [2, -1], [3, 4]), ("up_proj", [1, 1], [2, -3])):
        linear = model[0].get_submodule(layer)
        linear.weight.data, linear.weight.grad = (torch.tensor([values]).float() for values in (weight, slope))
    model[0].gate_proj.bias.data, model[0].gate_proj.bias.grad = torch.tensor([5.0]), torch.tensor([-0.5])
    (unit,) = anatomy(model).units
    gradient = gate_gradient(model, unit, torch.tensor([0.5]))
    assert gradient is not None
    assert gradient.tolist() == pytest.approx([-3.0])
    shut = gate_gradient(model, unit, torch.tensor([0.0]))
    assert shut is not None
    assert shut.tolist() == [0.0]


@pytest.mark.parametrize(
    ("rotary", "expected"), [(False, [4 + 60, 8 + 120, 12 + 180, 16 + 240]), (True, [16 + 240, 24 + 360])]
)
def test_the_gate_gradient_of_an_attention_sums_over_heads_and_rotary_partners(
    rotary: bool, expected: list[int]
) -> None:
    """Two query heads of width 4 and one of keys and values: rows (1 … 4) and (3 … 12) for q, (20 … 80), (40 … 160) for k, v."""
    if rotary:
        config = LlamaConfig(
            hidden_size=8, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=1, intermediate_size=4, vocab_size=5
        )  # fmt: skip
        model: nn.Module = LlamaModel(config)
        layers = model.get_submodule("layers.0.self_attn")
    else:
        config = ViTConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=4)
        model = ViTForImageClassification(config)
        layers = next(module for module in model.modules() if type(module).__name__ == "ViTAttention")
    unit = anatomy(model).units[0]
    slopes = {"q_proj": [1, 2, 3, 4, 3, 6, 9, 12], "k_proj": [20, 40, 60, 80], "v_proj": [40, 80, 120, 160]}
    for name, values in slopes.items():
        linear = layers.get_submodule(name)
        rows = linear.out_features
        slope = torch.tensor((values + [0] * rows)[:rows]).float()
        nn.init.ones_(linear.weight)
        linear.weight.grad = torch.zeros_like(linear.weight)
        linear.weight.grad[:, 0] = slope
    gradient = gate_gradient(model, unit, torch.ones(unit.channels))
    assert gradient is not None
    assert gradient.tolist() == expected


class Kind:
    """As much of a unit as `standardise` looks at."""

    def __init__(self, name: str) -> None:
        self.name, self.is_attention = name, "attention" in name


def test_scores_are_standardised_per_kind_over_all_layers_with_the_unbiased_deviation() -> None:
    """Attention: 1, 3, 5 have mean 3 and variance (4 + 0 + 4) / 2 = 4. MLPs: 10, 14 have mean 12 and variance 8."""
    scores = {"a.attention": [1.0, 3.0], "a.mlp": [10.0], "b.attention": [5.0], "b.mlp": [14.0]}
    tensors = {name: torch.tensor(values) for name, values in scores.items()}
    standard = standardise(tensors, tuple(Kind(name) for name in scores))  # type: ignore[arg-type]
    assert {name: values.tolist() for name, values in standard.items()} == {
        "a.attention": [-1.0, 0.0], "b.attention": [1.0],
        "a.mlp": pytest.approx([-(0.5**0.5)]), "b.mlp": pytest.approx([0.5**0.5]),
    }  # fmt: skip
    flat = standardise({"a.mlp": torch.tensor([7.0, 7.0])}, (Kind("a.mlp"),))  # type: ignore[arg-type]
    assert flat["a.mlp"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("normalize", "first"), [("sum", 0), ("step", 1)])
def test_scores_are_standardised_after_the_sum_or_before_it(normalize: Any, first: int) -> None:
    """(10, 0, −10) + (−.5, 1, −.5) = (9.5, 1, −10.5); standardised (1, 0, −1) + (−.58, 1.15, −.58) = (.42, 1.15, −1.58)."""
    search = Search(model_of({"mlp": 3}), UPop(ratio=0.3, normalize=normalize, interval=2), 2)
    feed(search, {"mlp": [10.0, 0.0, -10.0]})
    feed(search, {"mlp": [-0.5, 1.0, -0.5]})
    assert kept(search) == {"mlp": [channel for channel in range(3) if channel != first]}


@pytest.mark.parametrize(("normalize", "unit"), [("sum", "attention"), ("step", "mlp")])
def test_sums_of_standard_scores_are_not_standardised_again(normalize: Any, unit: str) -> None:
    """Standardised steps add up to (.80, −.89, .08) and (1, 1, −2): an MLP channel leads. The sums, (.8, −.9, .1) and
    (1, 1, −2), have deviations .85 and 1.73: the attention does."""
    method = UPop(ratio=1 / 6, normalize=normalize, cost="channels", interval=2)
    search = Search(model_of({"attention": 3, "mlp": 3}), method, 2)
    feed(search, {"attention": [1.0, 0.0, -1.0], "mlp": [1.0, 0.0, -1.0]})
    feed(search, {"attention": [-0.2, -0.9, 1.1], "mlp": [0.0, 1.0, -1.0]})
    assert kept(search) == {name: [1, 2] if name == unit else [0, 1, 2] for name in ("attention", "mlp")}


def test_gradients_are_summed_over_steps_and_those_that_lower_the_loss_go_first() -> None:
    """G = (3, −4, 2, −1): the loss falls fastest as channel 0 shrinks, then 2. The last step alone would say 1 and 3."""
    search = Search(model_of({"mlp": 4}), UPop(ratio=0.5, interval=2), 2)
    feed(search, {"mlp": [4.0, -9.0, 3.0, -3.0]})
    assert kept(search) == {"mlp": [0, 1, 2, 3]}
    feed(search, {"mlp": [-1.0, 5.0, -1.0, 2.0]})
    assert kept(search) == {"mlp": [1, 3]}


def test_units_on_several_devices_are_ranked_in_one_place(monkeypatch) -> None:
    """As above, with a unit on one device, one on another, and gates where their units lie."""
    monkeypatch.setattr(prunus.structured.search, "check_can_be_read", lambda *_: None)
    search = Search(model_of({"attention": 4, "a.mlp": 4, "b.mlp": 4}), UPop(ratio=4 / 32, interval=1), 2)
    gradients = {"attention": [0.0] * 4, "a.mlp": [1.0, 5.0, 0.0, 1.0], "b.mlp": [4.0, 0.0, 1.0, 1.0]}
    with devices():
        for place, unit in enumerate(search.units):
            for path in unit.linear_paths[:-1]:
                linear = search.model.get_submodule(path)
                values = gradients[unit.name] if path == unit.linear_paths[0] else [0.0] * 4
                linear.weight = nn.Parameter(on(linear.weight.detach(), f"meta:{place}"))
                linear.weight.grad = on(torch.tensor(values)[:, None], f"meta:{place}")
            search.gates.values[unit.name] = on(search.gates.values[unit.name], f"meta:{place}")
        search.step()
        search.step()
    assert kept(search) == {"attention": [0, 1, 2, 3], "a.mlp": [0, 2, 3], "b.mlp": [1, 2, 3]}


# Schedules, updates, gates


@pytest.mark.parametrize(
    ("schedule", "steps", "shares"),
    [
        ("cosine", 4, [math.sin(math.pi / 8), math.sqrt(0.5), math.sin(3 * math.pi / 8), 1.0]),
        ("cosine", 3, [0.5, math.sqrt(0.75), 1.0]),
        ("linear", 5, [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("concave", 4, [0.4, 0.7, 0.9, 1.0]),
        ("sigmoid", 4, [0.0701037, 0.5, 0.9298963, 1.0]),
        ("exponential", 4, [0.7183354, 0.9241412, 0.9831058, 1.0]),
    ],
)
def test_schedules_at_every_step(schedule: Any, steps: int, shares: Sequence[float]) -> None:
    pace = Progressive(schedule=schedule, interval=1)
    assert [pace.share(t, steps, 0.5) for t in range(steps)] == pytest.approx(shares, rel=1e-6)
    search = Search(model_of({"mlp": 1000}), UPop(ratio=0.5, schedule=schedule, interval=1, hold=0.5), 2 * steps)
    for _ in range(2 * steps):
        feed(search, {"mlp": range(1000)})
    assert [(t, asked) for t, asked, _ in search.course] == [
        (t + 1, pytest.approx(0.5 * share, rel=1e-6)) for t, share in enumerate(shares)
    ]


def test_updates_come_every_interval_and_at_the_last_step_of_the_search() -> None:
    def updates(steps: int, **settings: Any) -> list[int]:
        search = Search(model_of({"mlp": 4}), UPop(ratio=0.5, **settings), steps)
        for _ in range(steps):
            feed(search, {"mlp": [2.0, 1.0, 0.0, 0.0]})
        return [t - 1 for t, _, _ in search.course]

    assert updates(10, interval=3) == [2, 5, 8, 9]
    assert updates(10, interval=3, hold=0.2) == [2, 5, 7]
    assert updates(100, hold=0.5) == list(range(50)), "one percent of 50 percent is a fiftieth of the 50 steps"
    assert updates(200, hold=0.5) == list(range(1, 100, 2))
    assert Progressive().steps_between(1000, 0.5) == 20
    assert Progressive().steps_between(800, 0.8) == 10
    assert Progressive().steps_between(10, 0.5) == 1


def test_gates_close_by_the_share_of_the_ratio_that_is_reached_and_open_again() -> None:
    """At p_t of p, what is to go keeps 1 − p_t/p of itself: linear over three steps, 1, ½ and 0. Gates are set from scratch."""
    search = Search(model_of({"mlp": 4}), UPop(ratio=0.5, schedule="linear", interval=1), 3)
    feed(search, {"mlp": [2.0, 1.0, 0.0, 0.0]})
    assert search.gates.values["mlp"].tolist() == [1.0, 1.0, 1.0, 1.0]
    feed(search, {"mlp": [2.0, 1.0, 0.0, 0.0]})
    assert search.gates.values["mlp"].tolist() == [0.5, 1.0, 1.0, 1.0]
    feed(search, {"mlp": [-9.0, 0.0, 3.0, 0.0]})
    assert search.gates.values["mlp"].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert search.course == [(1, 0.0, 0.0), (2, 0.25, 0.25), (3, 0.5, 0.5)]
    assert Progressive().openness({"a": torch.tensor([True, False])}, 0.25)["a"].tolist() == pytest.approx([1.0, 0.75])


def test_the_hold_phase_neither_scores_nor_moves() -> None:
    search = Search(model_of({"mlp": 4}), UPop(ratio=0.5, interval=1, hold=0.5), 2)
    feed(search, {"mlp": [1.0, 0.0, 0.0, 1.0]})
    before = search.method_state["score"]["mlp"].clone()
    plan = search.plan()
    feed(search, {"mlp": [0.0, 9.0, 9.0, 0.0]})
    assert torch.equal(search.method_state["score"]["mlp"], before)
    assert search.plan() == plan
    assert plan.units["mlp"].kept == (1, 2)


# Costs


def test_a_channel_costs_its_parameters_its_count_or_what_the_published_code_charges() -> None:
    config = LlamaConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1, intermediate_size=48, vocab_size=9,
        attention_bias=True,
    )  # fmt: skip
    units = anatomy(LlamaModel(config)).units
    rotary_pair = 2 * (4 * (32 + 1) + 2 * (32 + 1) + 2 * (32 + 1) + 4 * 32)
    for cost, attention, mlp in (("parameters", rotary_pair, 3 * 32), ("channels", 2, 1), ("reference", 2 * 36, 1)):
        found = UPop(ratio=0.5, cost=cost).unit_costs(units)  # type: ignore[arg-type]
        assert found == {"layers.0.self_attn": attention, "layers.0.mlp": mlp}


def test_the_published_code_charges_36_beside_text_and_12_for_vision_alone() -> None:
    sizes = {"num_hidden_layers": 1, "hidden_size": 24, "num_attention_heads": 6, "intermediate_size": 8}
    image = {"image_size": 8, "patch_size": 4}
    for model, attention in (
        (CLIPModel(CLIPConfig(text_config=sizes | {"vocab_size": 9}, vision_config=sizes | image)), 36.0),
        (DeiTModel(DeiTConfig(**sizes, **image)), 12.0),
    ):
        units = anatomy(model).units
        costs = UPop(ratio=0.5, cost="reference").unit_costs(units)
        assert {costs[unit.name] for unit in units if unit.is_attention} == {attention}
        assert {costs[unit.name] for unit in units if not unit.is_attention} == {1.0}


def test_a_budget_is_a_share_of_cost_not_of_channels() -> None:
    """An attention channel costs 3 · 1 + 1 parameters, a neuron 1 + 1: three of the first are 12 of 4 · 4 + 8 · 2 = 32."""
    search = Search(model_of({"attention": 4, "mlp": 8}), UPop(ratio=0.375), 1)
    feed(search, {"attention": [9.0, 8.0, 7.0, -50.0], "mlp": [0.0, 0, 0, 0, 0, 0, 0, -1]})
    costs = UPop(ratio=0.5).unit_costs(search.units)
    assert costs == {"attention": 4.0, "mlp": 2.0}
    assert kept(search) == {"attention": [3], "mlp": list(range(8))}
    assert search.ratio == pytest.approx(0.375)


def test_a_plan_counts_the_share_of_parameters_that_leaves() -> None:
    """One attention channel of 4 and three neurons of 2 parameters are 10 of 32."""
    parts = anatomy(model_of({"attention": 4, "mlp": 8}))
    masks = {"attention": torch.arange(4) > 0, "mlp": torch.arange(8) < 5}
    plan = Plan.from_masks(parts, masks)
    assert plan.ratio == pytest.approx(10 / 32)
    assert plan.units["attention"].kept == (1, 2, 3)
    assert plan.units["mlp"].kept == (0, 1, 2, 3, 4)


# Selection


def chosen(scores: dict[str, list[float]], costs: dict[str, float], ratio: float, **more: int) -> dict[str, list[int]]:
    """Channels that go."""
    masks = select({name: torch.tensor(values) for name, values in scores.items()}, costs, ratio, **more)
    return {name: (~mask).nonzero().flatten().tolist() for name, mask in masks.items()}


@pytest.mark.parametrize(
    ("ratio", "a", "b"),
    [
        (2 / 8, [0], []),
        (4 / 8, [0, 2], []),
        (4.4 / 8, [0, 2], []),
        (4.5 / 8, [0, 2], []),  # both neighbours are as near: the smaller cut
        (4.6 / 8, [0, 2], [0]),
        (5 / 8, [0, 2], [0]),
    ],
)
def test_the_highest_scores_go_until_the_cost_is_nearest_the_budget(ratio: float, a: list[int], b: list[int]) -> None:
    """One ranking: 5 (a), 4 (a), 3 (b), then what the floors keep. Channels of a cost 2, of b 1, of 8 in all."""
    assert chosen({"a": [5.0, 1.0, 4.0], "b": [3.0, 2.0]}, {"a": 2.0, "b": 1.0}, ratio) == {"a": a, "b": b}


def test_ties_go_in_the_order_of_units_and_channels() -> None:
    same = {"a": [1.0, 1.0, 1.0], "b": [1.0, 1.0, 1.0]}
    assert chosen(same, {"a": 1.0, "b": 1.0}, 3 / 6) == {"a": [0, 1], "b": [0]}


def test_the_floor_keeps_the_lowest_scores() -> None:
    scores = {"a": [9.0, 7.0, 8.0], "b": [1.0, 2.0, 3.0]}
    assert chosen(scores, {"a": 1.0, "b": 1.0}, 2 / 6, minimum=2) == {"a": [0], "b": [2]}


def test_aligned_chunks_are_ranked_by_their_mean() -> None:
    """a may keep 4 or 2 of 5, so its chunks are {9} and {8, 7}; b keeps 2 of 4: {8.5, 7.9}, mean 8.2, before 7.5."""
    scores = {"a": [9.0, 1.0, 8.0, 2.0, 7.0], "b": [8.5, 0.0, 7.9, 0.1]}
    costs = {"a": 1.0, "b": 1.0}
    assert chosen(scores, costs, 3 / 9, align=2) == {"a": [0], "b": [0, 2]}
    assert chosen(scores, costs, 5 / 9, align=2) == {"a": [0, 2, 4], "b": [0, 2]}


def test_the_published_cut_spares_the_channel_at_it_and_the_lowest_of_every_unit() -> None:
    """The cost is nearest 4 of 6 after four channels, and the fourth stays; b, all above, gets its lowest back."""
    scores = {"a": torch.tensor([3.0, 2.0, 1.0, 0.0]), "b": torch.tensor([8.0, 9.0])}
    masks = select_as_published(scores, {"a": 1.0, "b": 1.0}, 4 / 6)
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "a": [False, True, True, True], "b": [True, False],
    }  # fmt: skip


def test_given_ratios_are_met_by_every_unit_in_step_with_the_schedule() -> None:
    """Half of 4 and a fifth of 10 channels are 4 of 14; at half of the way they are 1 and 1."""
    method = UPop(
        ratio=4 / 14, cost="channels", unit_ratios={"a.mlp": 0.5, "b.mlp": 0.2}, schedule="linear", interval=1
    )
    search = Search(model_of({"a.mlp": 4, "b.mlp": 10}), method, 3)
    for _ in range(2):
        feed(search, {"a.mlp": [0.0, 3.0, 2.0, 1.0], "b.mlp": [90.0 + channel for channel in range(10)]})
    assert kept(search) == {"a.mlp": [0, 2, 3], "b.mlp": list(range(9))}
    feed(search, {"a.mlp": [0.0] * 4, "b.mlp": [0.0] * 10})
    assert kept(search) == {"a.mlp": [0, 3], "b.mlp": list(range(8))}


def test_a_unit_never_goes_below_its_floor_whatever_ratio_it_is_given() -> None:
    units = anatomy(model_of({"a.mlp": 4, "b.mlp": 10, "c.mlp": 2})).units
    scores = {unit.name: torch.arange(float(unit.channels)) for unit in units}

    def widths(ratio: float, **more: Any) -> list[int]:
        method = UPop(ratio=0.5, unit_ratios={"a.mlp": 0.9, "b.mlp": 0.9}, **more)
        return [int(mask.sum()) for mask in method.parts().scope.keep(scores, units, method, ratio).values()]

    assert widths(0.5) == [1, 1, 2]
    assert widths(0.25) == [2, 6, 2]  # at half of the way, .45 of 4 and of 10; the smaller cut where both are as near
    assert widths(0.5, min_channels=2) == [2, 2, 2]
    assert widths(0.5, align=8) == [4, 8, 2]
    assert widths(0.5, min_channels=3) == [3, 3, 2]


def test_given_ratios_must_come_to_the_ratio() -> None:
    """By channels, .5 of 4 and .2 of 10 are 4 of 16; by parameters of 2 each as well. What is not named stays whole."""
    model = model_of({"a.mlp": 4, "b.mlp": 10, "c.mlp": 2})
    for cost in ("channels", "parameters"):
        given = {"cost": cost, "unit_ratios": {"a.mlp": 0.5, "b.mlp": 0.2}}
        for ratio in (0.2455, 0.25, 0.2545):
            Search(model, UPop(ratio=ratio, **given), 2).close()  # type: ignore[arg-type]
        for ratio in (0.244, 0.256):
            with pytest.raises(PrunusError, match=r"come to 0\.2500"):
                Search(model, UPop(ratio=ratio, **given), 2)  # type: ignore[arg-type]
    with pytest.raises(PrunusError, match=r"unit_ratios = 'd\.mlp': it names no"):
        Search(model, UPop(ratio=0.5, unit_ratios={"d.mlp": 0.5}), 2)


def test_ratios_are_given_to_towers_components_and_globs_and_the_narrower_name_wins() -> None:
    """.5 of two attentions of 4, .25 of the MLP of 8 and .75 of that of 4: 4 + 2 + 3 of 20 channels."""
    model = model_of({"attention": 4, "b.attention": 4, "c.mlp": 8, "d.mlp": 4})
    tower = anatomy(model).units[0].tower
    given = {"d.mlp": 0.75, f"{tower}.mlp": 0.25, tower: 0.5}
    search = Search(model, UPop(ratio=9 / 20, cost="channels", unit_ratios=given), 1)
    feed(search, {unit.name: range(unit.channels) for unit in search.units})
    assert kept(search) == {"attention": [0, 1], "b.attention": [0, 1], "c.mlp": list(range(6)), "d.mlp": [0]}


def test_a_search_has_a_step_at_least_and_an_interval_of_one() -> None:
    method = UPop(ratio=0.5, hold=0.9)
    assert (method.search_steps(1), method.search_steps(3), method.search_steps(100)) == (1, 1, 10)
    assert Progressive().steps_between(1, 0.5) == 1
    assert Progressive(schedule="linear").share(0, 1, 0.5) == 1.0
    assert (linear(0, 1), linear(0, 2), linear(1, 2)) == (1.0, 0.0, 1.0)


def test_scores_that_are_all_alike_or_alone_say_nothing() -> None:
    units = anatomy(model_of({"attention": 3, "mlp": 1})).units
    found = standardise({"attention": torch.tensor([2.0, 2.0, 2.0]), "mlp": torch.tensor([5.0])}, units)
    assert {name: score.tolist() for name, score in found.items()} == {"attention": [0.0, 0.0, 0.0], "mlp": [0.0]}


def test_a_budget_is_out_of_reach_if_more_than_the_dearest_channel_is_missing() -> None:
    """Of a, 2 channels of cost 1, and b, 2 of 3, one each may go: 4 of 8."""
    scores, costs = {"a": [1.0, 0.0], "b": [1.0, 0.0]}, {"a": 1.0, "b": 3.0}
    for ratio in (0.8, 7 / 8):
        assert chosen(scores, costs, ratio) == {"a": [0], "b": [0]}
    with pytest.raises(PrunusError, match=r"at most 0\.5000"):
        chosen(scores, costs, 7.1 / 8)


def test_floors_are_rounded_up_to_whole_chunks() -> None:
    scores = {"a": [float(channel) for channel in range(7)], "b": [0.0, 0.0, 0.0]}
    assert chosen(scores, {"a": 1.0, "b": 1.0}, 0.3, minimum=3, align=2) == {"a": [4, 5, 6], "b": []}
    assert chosen(scores, {"a": 1.0, "b": 1.0}, 0.1, minimum=3, align=2) == {"a": [6], "b": []}
    assert chosen({"b": [0.0, 0.0]}, {"b": 1.0}, 0.1, align=8) == {"b": []}


# Surgery


def test_fused_attention_is_the_formula_for_any_width() -> None:
    """Two heads of width 3 on a model of width 5: softmax(q kᵀ · scale) v, head by head, in plain sums."""
    torch.manual_seed(0)
    module: Any = nn.Module()
    module.qkv, module.projection = nn.Linear(5, 3 * 2 * 3), nn.Linear(2 * 3, 5)
    module.num_heads, module.head_dim, module.scale = 2, 3, 0.7
    module.config = SimpleNamespace(output_attentions=False)
    x = torch.randn(2, 4, 5)
    with torch.no_grad():
        q, k, v = module.qkv(x).split(6, -1)
        heads = []
        for rows in (slice(0, 3), slice(3, 6)):
            shares = torch.einsum("btw,bsw->bts", q[..., rows], k[..., rows]).mul(0.7).softmax(-1)
            heads.append((shares, torch.einsum("bts,bsw->btw", shares, v[..., rows])))
        expected = module.projection(torch.cat([context for _, context in heads], -1))
        shares = torch.stack([share for share, _ in heads], 1)
        for dropout in (nn.Dropout(0.9), 0.9):
            module.dropout = module.attention_dropout = None
            if isinstance(dropout, float):
                module.attention_dropout = dropout
            else:
                module.dropout = dropout
            module.eval()
            output, probabilities = fused_attention(module, x)
            torch.testing.assert_close(output, expected)
            assert probabilities is None
            for asked in (False, True):
                module.config.output_attentions = not asked
                output, probabilities = fused_attention(module, x, output_attentions=asked)
                torch.testing.assert_close(output, expected)
                torch.testing.assert_close(probabilities, shares)
                module.config.output_attentions = False
            module.train()
            assert not torch.allclose(fused_attention(module, x)[0], expected)
            assert not torch.allclose(fused_attention(module, x, output_attentions=True)[0], expected)


def test_narrowed_rotations_are_columns_of_the_tables() -> None:
    cos, sin = torch.arange(12.0).view(2, 6), torch.arange(12.0).view(2, 6) + 100
    rotation = NarrowRotation(torch.tensor([1, 4]))
    args, given = rotation(nn.Identity(), (7,), {"position_embeddings": (cos, sin), "other": 3})
    assert (args, given["other"]) == ((7,), 3)
    assert [table.tolist() for table in given["position_embeddings"]] == [[[1, 4], [7, 10]], [[101, 104], [107, 110]]]
    module = nn.Identity()
    keep_rotation(module, torch.tensor([0, 2, 3, 5]))
    keep_rotation(module, torch.tensor([1, 3]))
    (hook,) = module._forward_pre_hooks.values()
    assert hook.index.tolist() == [2, 5]  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(hook)).index.tolist() == [2, 5]


def test_queries_carry_the_scale_of_the_width_that_was_cut() -> None:
    """BLIP's text attention divides by the root of its current width: 2 of 8 kept makes that half, so queries are halved."""
    config = BlipTextConfig(
        hidden_size=16,
        encoder_hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        intermediate_size=8,
        vocab_size=9,
    )
    model = BlipTextModel(config, add_pooling_layer=False)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    parts = anatomy(model)
    unit = next(unit for unit in parts if unit.is_attention)
    plan = Plan(model=parts.model, ratio=0, units={unit.name: UnitPlan(channels=8, kept=(1, 6))})
    wide, narrow = (m.get_submodule(unit.path + ".self") for m in (model, extract(model, plan)))
    rows = [1, 6, 9, 14]  # of both heads
    for name, factor in (("query", 0.5), ("key", 1.0), ("value", 1.0)):
        for tensor in ("weight", "bias"):
            before, after = (getattr(getattr(m, name), tensor) for m in (wide, narrow))
            torch.testing.assert_close(after, before[rows] * factor)


# Meaning


class InverseGradient(GateGradient):
    """Takes first what UPop would keep."""

    importance: Literal["inverse"] = "inverse"  # type: ignore[assignment]

    def scores(self, state: Any) -> dict[str, Tensor]:
        return {name: -score for name, score in super().scores(state).items()}


def images(count: int, seed: int) -> dict[str, Tensor]:
    """Eight classes, each a fixed pattern, under noise."""
    patterns = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 8, (count,), generator=generator)
    return {"pixel_values": patterns[labels] + torch.randn(count, 3, 16, 16, generator=generator) / 2, "labels": labels}


def test_upop_prunes_better_than_chance_and_its_inverse_worse() -> None:
    """Neurons of a trained ViT; its weights do not learn during the search, so that only the choice counts."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=64, image_size=16, patch_size=4, num_labels=8
    )  # fmt: skip
    model, batch, unseen = ViTForImageClassification(config), images(64, 0), images(256, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    for _ in range(40):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    losses = {}
    for importance in (GateGradient(), Chance(), InverseGradient()):
        method = Structured(
            ratio=0.6, importance=importance, scope=Everyone(), closing=Progressive(interval=1), include=("*.mlp",)
        )
        search = Search(model, method, 16)
        for step in range(16):
            model(**images(32, 10 + step)).loss.backward()
            search.step()
            model.zero_grad()
        with torch.no_grad():
            losses[importance.importance] = float(model(**unseen).loss)
        search.close()
    with torch.no_grad():
        dense = float(model(**unseen).loss)
    cost = {name: loss - dense for name, loss in losses.items()}
    assert dense < 0.5, "the model has learned"
    assert cost["gate_gradient"] < 0.7 * cost["random"]
    assert cost["inverse"] > 1.5 * cost["random"]
