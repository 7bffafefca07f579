"""Attentions that are read by convention: norms, rotations, what the trial refuses."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.chameleon.modeling_chameleon import ChameleonLayerNorm
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig
from transformers.models.florence2.modeling_florence2 import Florence2VisionWindowAttention
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.llama4.modeling_llama4 import Llama4TextL2Norm

from prunus import Plan, PrunusError, anatomy, extract
from prunus.anatomy import Attention, Sites, describe, survey
from prunus.anatomy.catalog import CATALOG, qualified
from prunus.anatomy.conventions import TriedAttention
from prunus.anatomy.rotation import Rotation
from prunus.structured.gates import Gates, fold_gates
from prunus.structured.scores import gate_gradient
from tests.families import build
from tests.test_equivalence import deviation

HEADS, WIDTH, MODEL = 2, 8, 12


class Plain(nn.Module):
    """Queries, keys, values, output; what follows may change one thing each."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim, self.scaling = WIDTH, WIDTH**-0.5
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(MODEL, HEADS * WIDTH) for _ in range(3))
        self.o_proj = nn.Linear(HEADS * WIDTH, MODEL)

    def turned(self, x: Tensor) -> Tensor:
        return x

    def forward(self, hidden_states: Tensor) -> Tensor:
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        q, k, v = (f(hidden_states).view(shape).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        scores = self.turned(q) @ self.turned(k).transpose(-1, -2) * self.scaling
        return self.o_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(*hidden_states.shape[:-1], -1))


class Normed(Plain):
    norm: Any = LlamaRMSNorm

    def __init__(self) -> None:
        super().__init__()
        self.q_norm = self.norm(WIDTH, eps=0.3)
        nn.init.normal_(self.q_norm.weight)

    def turned(self, x: Tensor) -> Tensor:
        return self.q_norm(x)


class NormedFromOne(Normed):
    norm = Gemma3RMSNorm


class Centred(Normed):
    norm = nn.LayerNorm


class CentredByHead(Plain):
    """Every head has its own weights."""

    def __init__(self) -> None:
        super().__init__()
        self.k_norm = ChameleonLayerNorm((HEADS, WIDTH))
        nn.init.normal_(self.k_norm.weight)
        nn.init.normal_(self.k_norm.bias)

    def turned(self, x: Tensor) -> Tensor:
        return self.k_norm(x.transpose(1, 2)).transpose(1, 2)


class Weightless(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.qk_norm = Llama4TextL2Norm(eps=0.3)

    def turned(self, x: Tensor) -> Tensor:
        return self.qk_norm(x)


class Turning(Plain):
    def forward(self, hidden_states: Tensor, rotation_angles: Tensor | None = None) -> Tensor:
        return super().forward(hidden_states)


class Sharing(Plain):
    def forward(self, hidden_states: Tensor, shared_kv_states: dict[str, Tensor]) -> Tensor:
        shared_kv_states["mine"] = self.k_proj(hidden_states)
        return super().forward(hidden_states)


def model_of(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Module()
    model.layers = nn.ModuleList([kind()])
    return model


@pytest.mark.parametrize("kind", [Plain, Normed, NormedFromOne, Centred, CentredByHead, Weightless])
def test_norms_over_the_channels_are_cut_exactly_with_a_large_epsilon_twice(kind: type[Plain]) -> None:
    model = model_of(kind)
    (unit,) = anatomy(model)
    x, kept = torch.randn(2, 5, MODEL), torch.tensor([1, 2, 6])
    small = extract(
        model,
        Plan.from_masks(
            anatomy(model), {unit.name: torch.zeros(8).index_fill_(0, torch.tensor([1, 2, 4, 6]), 1).bool()}
        ),
    )
    small = extract(small, Plan.from_masks(anatomy(small), {unit.name: torch.tensor([True, True, False, True])}))
    once = extract(model, Plan.from_masks(anatomy(model), {unit.name: torch.zeros(8).index_fill_(0, kept, 1).bool()}))
    masked = copy.deepcopy(model)
    Gates(masked, [unit]).set({unit.name: torch.zeros(WIDTH).index_fill_(0, kept, 1)})
    with torch.no_grad():
        expected = masked.layers[0](x)
        for narrow in (small, once, pickle.loads(pickle.dumps(once))):
            assert narrow.layers[0].head_dim == 3
            assert deviation([expected], [narrow.layers[0](x)]) < 1e-6
    if kind in (Normed, NormedFromOne):
        assert small.layers[0].q_norm.weight.shape == (3,)
        epsilons = {
            getattr(m.layers[0].q_norm, "variance_epsilon", getattr(m.layers[0].q_norm, "eps", 0))
            for m in (small, once)
        }
        assert epsilons == {0.3 * 8 / 3}, "two cuts are one, to the bit"
    of_norms = {Normed: 1, NormedFromOne: 1, Centred: 2, CentredByHead: 2 * HEADS}
    assert unit.channel_cost == 2 * (3 * (MODEL + 1) + MODEL) + of_norms.get(kind, 0), "weights of the norm leave, too"


class OnPlanes(nn.Module):
    """Tokens are places of an image, and queries are multiplied by tables of relative rows."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale = HEADS, WIDTH**-0.5
        self.qkv, self.proj = nn.Linear(MODEL, 3 * HEADS * WIDTH), nn.Linear(HEADS * WIDTH, MODEL)
        self.rel_pos = nn.Parameter(torch.randn(7, WIDTH))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-1, -2) * self.scale

    def forward(self, hidden_states: Tensor) -> Tensor:
        _, height, width, _ = hidden_states.shape
        qkv = self.qkv(hidden_states.flatten(1, 2)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        row = torch.arange(height * width) // width
        bias = torch.einsum("bhqw,qkw->bhqk", q, self.rel_pos[row[:, None] - row + 3])
        context = (self.scores(q, k) + bias).softmax(-1) @ v
        return self.proj(context.transpose(1, 2).flatten(2)).unflatten(1, (height, width))


class OnPlanesByWidth(OnPlanes):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5


@pytest.mark.parametrize("kind", [OnPlanes, OnPlanesByWidth])
def test_tables_that_multiply_queries_lose_columns(kind: type[nn.Module]) -> None:
    model = model_of(kind)
    (unit,) = anatomy(model)
    mask, x, masked = torch.rand(WIDTH) > 0.4, torch.randn(2, 3, 4, MODEL), copy.deepcopy(model)
    Gates(masked, [unit]).set({unit.name: mask.float()})
    small = extract(model, Plan.from_masks(anatomy(model), {unit.name: mask}))
    with torch.no_grad():
        assert deviation([masked.layers[0](x)], [small.layers[0](x)]) < 1e-6
    assert small.layers[0].rel_pos.shape == (7, int(mask.sum()))
    assert unit.channel_cost == HEADS * (3 * (MODEL + 1) + MODEL) + 7


def test_attention_in_windows_is_the_stock_one_at_any_width() -> None:
    config = Florence2VisionConfig(embed_dim=(32,), num_heads=(4,), window_size=3)
    model = nn.Module()
    model.layers = nn.ModuleList([Florence2VisionWindowAttention(config, 0)])
    (unit,) = anatomy(model)
    mask, x, masked = torch.arange(8) % 3 > 0, torch.randn(2, 4, 5, 32), copy.deepcopy(model)
    Gates(masked, [unit]).set({unit.name: mask.float()})
    small = extract(model, Plan.from_masks(anatomy(model), {unit.name: mask}))
    with torch.no_grad():
        assert deviation([masked.layers[0](x)], [small.layers[0](x)]) < 1e-6


@pytest.mark.parametrize("kind", [Centred, CentredByHead])
def test_a_gate_also_multiplies_behind_a_norm_that_takes_off_the_mean(kind: type[Plain]) -> None:
    model = model_of(kind)
    (unit,) = anatomy(model)
    values, x = torch.linspace(0.3, 1.5, WIDTH), torch.randn(2, 5, MODEL)
    read = []
    for exact in (True, False):
        searched = copy.deepcopy(model)
        gates = Gates(searched, [unit], exact=exact)
        gates.set({unit.name: values})
        searched.layers[0](x).square().sum().backward()
        if exact:
            gates.take_gradients()
        read.append(gate_gradient(searched, unit, gates.values[unit.name]))
    assert deviation([read[0]], [read[1]]) < 1e-5, "by the outputs, and by the weights"
    with torch.no_grad():
        before = searched.layers[0](x)
        fold_gates(searched)
        gates.remove()
        assert deviation([before], [searched.layers[0](x)]) < 1e-6


@pytest.mark.parametrize("norm", [nn.LayerNorm, LlamaRMSNorm])
def test_a_norm_over_hidden_neurons_is_cut_with_them(norm: Any) -> None:
    class SubNormed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.back = nn.Linear(MODEL, 16), nn.Linear(16, MODEL)
            self.within = norm(16, eps=0.3)
            nn.init.normal_(self.within.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.back(self.within(self.wide(x).relu()))

    model = model_of(SubNormed)
    (unit,) = anatomy(model)
    masked, x, mask = copy.deepcopy(model), torch.randn(2, 5, MODEL), torch.rand(16) > 0.4
    Gates(masked, [unit]).set({unit.name: mask.float()})
    small = extract(model, Plan.from_masks(anatomy(model), {unit.name: mask}))
    with torch.no_grad():
        assert deviation([masked.layers[0](x)], [small.layers[0](x)]) < 1e-6
    assert small.layers[0].within.weight.shape == small.layers[0].wide.bias.shape == (int(mask.sum()),)


def test_layers_in_a_row_are_an_mlp() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Plain()
            self.ffn = nn.Sequential(nn.Linear(MODEL, 16), nn.GELU(), nn.Linear(16, MODEL))
            self.loud = nn.Sequential(nn.Linear(MODEL, 16), nn.Sigmoid(), nn.Linear(16, MODEL))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attention(x)
            return x + self.ffn(x) + self.loud(x)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(MODEL, 16), nn.GELU(), nn.Linear(16, MODEL))

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.net(x)

    (unit,) = anatomy(model_of(Wrapped))
    assert (unit.name, unit.twins) == ("layers.0", ()), "the layers of one MLP are found once"
    parts = anatomy(model_of(Block))
    assert [unit.name for unit in parts] == ["layers.0.attention", "layers.0.ffn"]
    assert [(part.path, part.type) for part in parts.unmapped] == [("layers.0.loud", "Sequential")]


def test_an_mlp_may_have_more_than_its_convention_says() -> None:
    class WithNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.act_fn = nn.LayerNorm(MODEL), nn.SiLU()
            self.gate_up_proj, self.down_proj = nn.Linear(MODEL, 32), nn.Linear(16, MODEL)

        def forward(self, x: Tensor) -> Tensor:
            up, gate = self.gate_up_proj(self.before(x)).chunk(2, -1)
            return self.down_proj(up * self.act_fn(gate))

    assert [unit.channels for unit in anatomy(model_of(WithNorm))] == [16]


class Merging(nn.Module):
    """One layer between two widths, and a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * MODEL, MODEL)
        self.scale = nn.Parameter(torch.ones(1, MODEL, 1))


class Recurrent(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.zeros(HEADS))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.o_proj(hidden_states.cumsum(-2) @ self.q_proj.weight.T)


@pytest.mark.parametrize(
    ("kind", "why"), [(Merging, "one layer leads from one width"), (Recurrent, "state of their width")]
)
def test_what_has_no_channels_says_so(kind: type[nn.Module], why: str) -> None:
    model = model_of(kind)
    (part,) = anatomy(model).unmapped
    assert why in part.reason
    assert not survey(model).left_dense, "a parameter with one long side is no matrix"


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Turning, "asks for rotation_angles"),
        (Sharing, "other layers use its keys and values"),
    ],
)
def test_what_no_trial_proves_stays_dense_with_the_reason(kind: type[Plain], why: str) -> None:
    parts = anatomy(model_of(kind))
    assert not parts.units
    assert all(why in part.reason for part in parts.unmapped), parts.unmapped


def test_an_entry_that_is_wrong_is_refused_by_the_trial() -> None:
    try:
        describe(Normed, Attention("q_proj", "k_proj", "v_proj", "o_proj"))
        parts = anatomy(model_of(Normed))
        assert not parts.units
        assert "once it was narrow" in parts.unmapped[0].reason
    finally:
        del CATALOG[qualified(Normed)]


@pytest.mark.parametrize(
    ("rotation", "turned", "order", "columns"),
    [
        (Rotation(), 8, (0, 1, 2, 3) * 2, ([1, 3, 5, 7], 8)),
        (Rotation("neighbours"), 8, (0, 0, 1, 1, 2, 2, 3, 3), ([2, 3, 6, 7], 8)),
        (Rotation("neighbours", "halves"), 8, (0, 0, 1, 1, 2, 2, 3, 3), ([1, 3, 5, 7], 8)),
        (Rotation("halves", "once"), 8, (0, 1, 2, 3) * 2, ([1, 3], 4)),
        (Rotation("quarters"), 8, (0, 1) * 4, ([1, 3, 5, 7], 8)),
        (Rotation(), 4, (0, 1, 0, 1, 2, 3, 2, 3), ([1, 3], 4)),
    ],
)
def test_channels_are_features_that_turn_together(
    rotation: Rotation, turned: int, order: tuple[int, ...], columns: tuple[list[int], int]
) -> None:
    assert rotation.order(8, turned) == order
    index, width = rotation.columns(torch.tensor([1, 3]), turned)
    assert (index.tolist(), width) == columns


def test_features_and_channels_are_told_apart_by_their_order() -> None:
    sites = Sites(producers=(), consumer=None, channels=4, span=2, order=(0, 0, 1, 1, 2, 2, 3, 3))  # type: ignore[arg-type]
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert sites.spread(values, 2).tolist() == [1, 1, 2, 2, 3, 3, 4, 4] * 2
    assert sites.gather(sites.spread(values, 2)).tolist() == [4, 8, 12, 16]


def test_tables_of_another_width_are_refused_by_name() -> None:
    case = build("qwen3", 0)
    unit = next(iter(anatomy(case.model)))
    assert isinstance(unit.layout, TriedAttention)
    mask = torch.zeros(unit.channels, dtype=torch.bool)
    mask[0] = True
    small = extract(case.model, Plan.from_masks(anatomy(case.model), {unit.name: mask}))
    attention = small.get_submodule(unit.path)
    tables = torch.zeros(1, 3, 2), torch.zeros(1, 3, 2)
    with pytest.raises(PrunusError, match="was narrowed for tables of"):
        attention(torch.zeros(1, 3, case.model.config.hidden_size), position_embeddings=tables, attention_mask=None)
