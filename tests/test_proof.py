"""What trials prove: everything that a module gives, everything that matters to it, once for all that are alike."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.family_sweep import halved
from torch import Tensor, nn
from transformers import ImageGPTConfig, ImageGPTModel, LlamaConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from prunus import anatomy, extract
from prunus.anatomy import experts, trial
from prunus.anatomy.conventions import Norm, TriedAttention
from prunus.calibrated.plain import Knob, same_count
from prunus.structured import Gates
from tests.test_conventions import MODEL, WIDTH, Plain, model_of
from tests.test_equivalence import deviation


class Showing(Plain):
    """Gives its queries to whoever calls it."""

    def forward(self, hidden_states: Tensor) -> Any:
        return super().forward(hidden_states), self.q_proj(hidden_states)


class Keeping(Plain):
    """Leaves its keys where others may read them."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        self.seen = self.k_proj(hidden_states)
        return super().forward(hidden_states)


class LookingAtOne(Plain):
    """Reads a single key, so that its queries say nothing."""

    def turned(self, x: Tensor) -> Tensor:
        return x * 0


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Showing, "does not give what the masked one gives"),
        (Keeping, "does not give what the masked one gives"),
        (LookingAtOne, "does not depend on its q_proj"),
    ],
)
def test_a_trial_looks_at_all_that_a_module_gives_and_all_that_matters(kind: type[Plain], why: str) -> None:
    parts = anatomy(model_of(kind))
    assert not parts.units
    assert why in parts.unmapped[0].reason


class Turning(Plain):
    """Turns queries and keys in a way that depends on what it holds; sums over the head width cannot be cut."""

    def __init__(self, how: Any = None) -> None:
        super().__init__()
        self.how = how

    def turned(self, x: Tensor) -> Tensor:
        how = self.how
        if isinstance(how, tuple):
            return x.cumsum(-1) if how[0] else x
        if callable(how):
            return how(x)
        return x.cumsum(-1) if how.sums else x


def plainly(x: Tensor) -> Tensor:
    return x


def holding(sums: bool) -> Callable[[Tensor], Tensor]:
    return lambda x: x.cumsum(-1) if sums else x


CONFIG, OTHER = LlamaConfig(sums=False), LlamaConfig(sums=True)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ((0, 1), (1, 1)),
        (plainly, lambda x: x.cumsum(-1)),
        (holding(False), holding(True)),
        (SimpleNamespace(sums=False), SimpleNamespace(sums=True)),
        (CONFIG, OTHER),
    ],
    ids=["tuple", "function", "closure", "object", "config"],
)
def test_a_verdict_is_of_all_that_a_module_holds(right: Any, wrong: Any) -> None:
    for how, is_found in ((right, True), (wrong, False), (right, True)):
        model = nn.Module()
        model.layers = nn.ModuleList([Turning(how)])
        assert bool(anatomy(model).units) is is_found


class Seeing(Plain):
    """Looks at earlier tokens, as a buffer says; sums where it must not."""

    sums = False

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("visible", torch.ones(9, 9, dtype=torch.bool).tril(), persistent=False)

    def turned(self, x: Tensor) -> Tensor:
        return x.cumsum(-1) if self.sums else x

    def forward(self, hidden_states: Tensor) -> Tensor:
        shape, tokens = (*hidden_states.shape[:-1], -1, self.head_dim), hidden_states.shape[1]
        q, k, v = (f(hidden_states).view(shape).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        scores = self.turned(q) @ self.turned(k).transpose(-1, -2) * self.scaling
        scores = scores.masked_fill(~self.visible[:tokens, :tokens], torch.finfo(scores.dtype).min)
        return self.o_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(*hidden_states.shape[:-1], -1))


class SeeingSums(Seeing):
    sums = True


@pytest.mark.parametrize("kind", [Seeing, SeeingSums])
def test_a_verdict_does_not_depend_on_whether_there_are_values(kind: type[Seeing]) -> None:
    with torch.device("meta"):
        empty = model_of(kind)
    for model in (empty, model_of(kind)):
        assert bool(anatomy(model).units) is not kind.sums


def test_modules_that_are_alike_are_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def counting(name: str, function: Callable[..., str]) -> Callable[..., str]:
        return lambda *args: tried.append(name) or function(*args)  # type: ignore[func-returns-value]

    monkeypatch.setattr(trial, "_mlp_objection", counting("mlp", trial._mlp_objection))
    monkeypatch.setattr(experts, "_objection", counting("experts", experts._objection))
    config = LlamaConfig(hidden_size=MODEL, intermediate_size=23, num_attention_heads=2)
    mixed = Qwen3MoeConfig(
        hidden_size=MODEL,
        num_attention_heads=2,
        moe_intermediate_size=23,
        num_experts=3,
        experts_implementation="eager",
    )
    model = nn.Module()
    model.layers = nn.ModuleList([*(LlamaMLP(config) for _ in range(3)), *(Qwen3MoeExperts(mixed) for _ in range(3))])
    assert len(anatomy(model)) == 6
    assert sorted(tried) == ["experts", "mlp"]


def test_a_norm_that_multiplies_by_one_plus_its_weight_is_folded_with_one_rounding() -> None:
    norm = Gemma3RMSNorm(WIDTH)
    nn.init.normal_(norm.weight, std=0.02)
    weight = norm.weight.data.bfloat16()
    layout = TriedAttention("q", "k", "v", "o", norms=(Norm("norm", offset=1.0),))
    expected = ((weight.double() + 1) * 0.5**-0.5 - 1).to(torch.bfloat16)
    assert torch.equal(layout.refit("norm", weight, 0.5), expected)


@pytest.mark.parametrize("scales", [True, False])
def test_attentions_of_conv1d_layers_are_tried(scales: bool) -> None:
    torch.manual_seed(0)
    config = ImageGPTConfig(n_embd=32, n_head=2, n_layer=1, vocab_size=50, n_positions=16, scale_attn_weights=scales)
    model = ImageGPTModel(config).eval()
    small, parts, plan = extract(model, halved(model)), anatomy(model), halved(model)
    assert {unit.kind for unit in parts} == {"attention", "mlp"}
    masked = copy.deepcopy(model)
    gates = Gates(masked, parts.units)
    gates.set({u.name: torch.zeros(u.channels).index_fill_(0, plan.kept(u), 1.0) for u in parts})
    x = torch.randint(0, 49, (2, 7))
    assert deviation([masked(x).last_hidden_state], [small(x).last_hidden_state]) < 1e-5


def test_where_nothing_goes_nothing_is_rounded_away() -> None:
    parts = anatomy(model_of(Plain))
    (unit,) = parts
    knob, whole = Knob("", {"width": 1}, {}, (unit,)), torch.ones(unit.channels, dtype=torch.bool)
    for align in (3, 16):
        even = same_count(
            {unit.name: whole}, {unit.name: torch.rand(unit.channels)}, [knob], {unit.name: 1.0}, align, 1, True
        )
        assert torch.equal(even[unit.name], whole)
