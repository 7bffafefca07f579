"""On a small language model that has learnt something: pruners beat chance, and their inverse does worse; so for allocations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from prunus import (
    OWL,
    DSnoT,
    ECoFLaP,
    Magnitude,
    SparseGPT,
    SparsityPlan,
    Uniform,
    WalkOptions,
    Wanda,
    allocate,
    matrices,
    prune,
)
from prunus.losses import own_loss
from prunus.plan import MatrixPlan

QUIET = WalkOptions(progress=False)
WORDS = 24


def sentences(count: int, seed: int) -> Tensor:
    """Each word follows from the two before it; one in ten is any word."""
    generator = torch.Generator().manual_seed(seed)
    after = torch.randperm(WORDS * WORDS, generator=torch.Generator().manual_seed(1)) % WORDS
    rows = torch.randint(WORDS, (count, 16), generator=generator)
    for at in range(2, 16):
        told = after[rows[:, at - 2] % 4 * WORDS + rows[:, at - 1]]
        rows[:, at] = torch.where(torch.rand(count, generator=generator) < 0.1, rows[:, at], told)
    return rows


@pytest.fixture(scope="module")
def learnt() -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=32, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        )
    )  # fmt: skip
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(150):
        optimiser.zero_grad()
        model(input_ids=(rows := sentences(32, 100 + step)), labels=rows).loss.backward()
        optimiser.step()
    return model.eval()


def batches() -> list[dict[str, Tensor]]:
    return [{"input_ids": rows} for rows in sentences(64, 1).split(16)]


@torch.no_grad()
def loss(model: Any) -> float:
    return float(own_loss(model, {"input_ids": sentences(128, 2)}))


def after(model: LlamaForCausalLM, method: Any, plan: SparsityPlan | None = None) -> float:
    pruned = copy.deepcopy(model)
    prune(pruned, method, batches(), plan, options=QUIET)
    return loss(pruned)


class Chance(Magnitude):
    """Any weights go."""

    def scores(self, weight: Tensor, inputs: Any) -> Tensor:
        return torch.rand(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))


class InverseMagnitude(Magnitude):
    def scores(self, weight: Tensor, inputs: Any) -> Tensor:
        return -super().scores(weight, inputs)


class InverseWanda(Wanda):
    def scores(self, weight: Tensor, inputs: Any) -> Tensor:
        return -super().scores(weight, inputs)


def test_every_pruner_beats_chance_and_its_inverse_does_worse(learnt: LlamaForCausalLM) -> None:
    dense, chance = loss(learnt), after(learnt, Chance(sparsity=0.6))
    assert dense + 0.5 < chance, "a model that has learnt something"
    for method in (Magnitude, Wanda, SparseGPT, DSnoT):
        assert after(learnt, method(sparsity=0.6)) < dense + 0.3 * (chance - dense), method.__name__
    for inverse in (InverseMagnitude, InverseWanda):
        assert after(learnt, inverse(sparsity=0.6)) > chance, inverse.__name__


def turned(model: LlamaForCausalLM, plan: SparsityPlan, method: Any) -> SparsityPlan:
    """What the method would give if a low score were a high one."""
    chosen = matrices(model)
    scores = {name: 1 / (value + 1e-9) for name, value in plan.method["allocation"]["scores"].items()}
    kept = method.kept(chosen, scores)
    return plan.model_copy(update={"matrices": {m.name: MatrixPlan.of(m, m.weights - kept[m.name]) for m in chosen}})


@pytest.fixture(scope="module")
def padded(learnt: LlamaForCausalLM) -> LlamaForCausalLM:
    """With three more layers that do next to nothing."""
    model = copy.deepcopy(learnt)
    for place in (0, 2, 4):
        layer = copy.deepcopy(model.model.layers[place])
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.weight.data.mul_(0.01)
        model.model.layers.insert(place, layer)
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = place
    model.config.num_hidden_layers = len(model.model.layers)
    return model


@pytest.mark.parametrize(
    "method",
    [
        ECoFLaP(sparsity=0.7, max_sparsity=0.9),
        ECoFLaP(sparsity=0.7, max_sparsity=0.9, order="zeroth"),
        ECoFLaP(sparsity=0.7, max_sparsity=0.9, granularity="layer", score="weight_gradient"),
        ECoFLaP(sparsity=0.7, max_sparsity=0.9, score="squared"),
    ],
    ids=lambda m: f"{m.order}-{m.score}",
)
def test_allocations_keep_weights_where_the_loss_needs_them(padded: LlamaForCausalLM, method: Any) -> None:
    plan = allocate(padded, method, batches()[:2], progress=False)
    uniform = allocate(padded, Uniform(sparsity=0.7))
    kept, flat, inverse = (after(padded, Wanda(), p) for p in (plan, uniform, turned(padded, plan, method)))
    assert kept < flat - 0.01
    assert flat < inverse - 0.05


def test_owl_keeps_weights_where_outliers_are(learnt: LlamaForCausalLM) -> None:
    method = OWL(sparsity=0.6, outlier=3.0)
    plan = allocate(learnt, method, batches(), progress=False)
    share: dict[str, float] = {}
    for name, count in plan.method["allocation"]["scores"].items():
        share[plan.matrices[name].block] = share.get(plan.matrices[name].block, 0.0) + count
    sparsity = {m.block: m.sparsity for m in plan.matrices.values()}
    most, least = max(share, key=share.__getitem__), min(share, key=share.__getitem__)
    assert sparsity[most] < sparsity[least] - 0.1
