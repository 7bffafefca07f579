"""What costs, plans and metrics say, against numbers worked out by hand."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTModel

from prunus import (
    OWL,
    DSnoT,
    ECoFLaP,
    IterativeGlobal,
    Magnitude,
    Manual,
    Plan,
    SparseGPT,
    SparsityPlan,
    Uniform,
    Wanda,
    allocate,
    anatomy,
    cost,
    matrices,
    prune_matrix,
)  # fmt: skip
from prunus.fingerprint import Fingerprint
from prunus.plan import MatrixPlan
from prunus.plan.channels import decode_channels, encode_channels
from prunus.plan.sparsity import part_of, per_tower, uniform, written_sparsities
from prunus.tasks.text import Text, windows
from tests.families import build
from tests.holder import Holder

# costs


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_multiply_accumulates_are_those_of_the_formula(implementation: str) -> None:
    """Two layers of width 12, three heads, MLP 20, on 4 × 4 patches of 3 · 4² numbers and a class token."""
    config = ViTConfig(
        hidden_size=12, num_attention_heads=3, num_hidden_layers=2, intermediate_size=20, image_size=16, patch_size=4
    )
    model = ViTModel(config, add_pooling_layer=False).eval()
    model.set_attn_implementation(implementation)
    model.requires_grad_(True)
    pixels = torch.randn(2, 3, 16, 16)
    found = cost.multiply_accumulates(model, lambda: model(pixels))
    tokens = 17
    layer = tokens * (4 * 12 * 12 + 2 * 12 * 20) + 2 * tokens * tokens * 12
    assert found["vision"] == 2 * 2 * layer
    assert found["total"] == 2 * 2 * layer + 2 * 16 * 48 * 12
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_sizes_count_shared_parameters_once() -> None:
    config = LlamaConfig(
        hidden_size=8, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=1, intermediate_size=12,
        vocab_size=50, tie_word_embeddings=True,
    )  # fmt: skip
    found = cost.size(LlamaForCausalLM(config).bfloat16())
    layer = 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 3 * 8 * 12 + 2 * 8
    assert found.parameters == 50 * 8 + layer + 8
    assert found.bytes == 2 * found.parameters


def test_latencies_are_medians_of_runs_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock moves with the calls: `a` takes 9 (warm-up), 1, 2, 6 seconds, `b` 5 every time."""
    now, order = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    waits = {"a": itertools.chain([9.0, 1.0, 2.0, 6.0]), "b": itertools.repeat(5.0)}

    def run(name: str) -> None:
        order.append(name)
        now[0] += next(waits[name])

    found = cost.latencies({name: lambda name=name: run(name) for name in waits}, repeats=3)
    assert "".join(order) == "ab" * 4
    assert (found["a"].median, found["a"].low, found["a"].high, found["a"].runs) == (2.0, 1.0, 6.0, 3)
    assert found["b"].median == 5.0


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (-1, "0"), (0.5, "0.5"), (1, "1"), (999, "999"), (1000, "1k"), (1234567, "1.23M"), (2.5e9, "2.5G"), (3e12, "3T"), (4e15, "4e+03T")],
)  # fmt: skip
def test_numbers_for_people(count: float, text: str) -> None:
    assert cost.human(count) == text
    assert cost.human(count, "B") == text + "B"


def test_peak_memory_is_in_bytes() -> None:
    before = cost.peak_memory()
    assert 50e6 < before < 50e9
    held = torch.ones(60_000_000)
    assert cost.peak_memory() >= before
    assert cost.peak_memory() > 4 * held.numel()


def test_peak_memory_is_what_the_system_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted() -> int:
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024

    if Path("/proc/self/status").exists():
        before = counted()
        assert before <= cost.peak_memory() <= counted()
    monkeypatch.setattr(Path, "exists", lambda _: False)
    monkeypatch.setattr(cost.resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=5000))
    for platform, unit in (("linux", 1024), ("darwin", 1)):
        monkeypatch.setattr(cost.sys, "platform", platform)
        assert cost.peak_memory() == 5000 * unit


def test_fused_attention_multiplies_queries_with_keys_and_probabilities_with_values() -> None:
    """2 batches, 3 heads, 5 queries of width 7, 11 keys, values of width 13."""
    found = cost._fused_attention_flops((2, 3, 5, 7), (2, 3, 11, 7), (2, 3, 11, 13))
    assert found == 2 * (2 * 3 * 5 * 11 * 7 + 2 * 3 * 5 * 11 * 13)


def test_counting_leaves_no_hook_and_no_gradient_off() -> None:
    """BLIP-2's query tokens, a parameter that blocks are called with, trip over torch's counter while they train."""
    case = build("blip2_opt", 3)
    case.model.qformer.layernorm.weight.requires_grad_(False)
    required = [parameter.requires_grad for parameter in case.model.parameters()]
    assert 0 < sum(required) < len(required)
    found = cost.multiply_accumulates(case.model, lambda: case.model(**case.inputs))
    assert 0 < sum(count for tower, count in found.items() if tower != "total") < found["total"]
    with pytest.raises(ZeroDivisionError):
        cost.multiply_accumulates(case.model, lambda: 1 // 0)
    assert [parameter.requires_grad for parameter in case.model.parameters()] == required
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in case.model.modules())


# plans


def plan(**pruned: int) -> SparsityPlan:
    towers = {"a": "vision", "b": "text", "c": "text"}
    return SparsityPlan(
        model="M", method={"method": "x"}, candidates=3,
        matrices={n: MatrixPlan(tower=towers[n], block="", rows=2, columns=5, pruned=p) for n, p in pruned.items()},
    )  # fmt: skip


def test_a_plan_s_sparsity_is_over_weights_in_all_and_by_tower() -> None:
    made = plan(a=1, b=6, c=10)
    assert made.sparsity == pytest.approx(17 / 30)
    assert made.towers == {"vision": pytest.approx(0.1), "text": pytest.approx(0.8)}
    assert made.matrices["b"].sparsity == pytest.approx(0.6)
    assert made.matrices["b"].weights == 10


def test_shares_are_rounded_down_for_the_number_that_was_written() -> None:
    assert [part_of(10, p) for p in (0.0, 0.29, 0.3, 0.7, 0.999, 1.0)] == [0, 2, 3, 7, 9, 10]
    assert part_of(100, 0.29) == 29  # 0.29 · 100 is a hair below 29
    assert part_of(10**9, 0.29) == 290_000_000
    assert part_of(10, 1 - 9 / 10) == 1


def test_half_of_25_weights_is_one_number_whoever_rounds() -> None:
    """But for what is published otherwise: rows are rounded one by one, and ECoFLaP rounds what stays."""
    model = Holder((5, 5))
    matrix = matrices(model)[0]

    def gone(plan: SparsityPlan) -> int:
        return plan.matrices[matrix.name].pruned

    x = [torch.randn(1, 4, 5)]
    loss = lambda model, batch: model.fc1().square().sum() * batch.sum()  # noqa: E731
    for method in (Uniform(), Manual(sparsity={"*": 0.5}), IterativeGlobal(rounds=1)):
        assert gone(allocate(model, method, x, loss, [matrix.name], progress=False)) == 12, method.method
    assert 25 - OWL().kept([matrix], {matrix.name: 3.0})[matrix.name] == 12
    assert gone(allocate(model, Uniform(sparsity=0.1), include=[matrix.name]).edit({"*": 0.5})) == 12
    for pruner in (Magnitude(group="matrix"), Wanda(group="matrix"), SparseGPT()):
        assert int(prune_matrix(torch.randn(5, 5), torch.randn(2, 9, 5), pruner)[1].sum()) == 12
    for pruner in (Magnitude(), Wanda(), DSnoT()):
        assert int(prune_matrix(torch.randn(5, 5), torch.randn(2, 9, 5), pruner)[1].sum()) == 10
    assert gone(allocate(model, ECoFLaP(), x, loss, [matrix.name], progress=False)) == 13


def test_uniform_plans_round_by_row_or_by_matrix() -> None:
    chosen = matrices(Holder((3, 5), (4, 7)))
    by_row = uniform("M", chosen, 0.5, by_row=True)
    as_whole = uniform("M", chosen, 0.5, by_row=False)
    for m in chosen:
        assert by_row.matrices[m.name].pruned == m.rows * (m.columns // 2)
        assert as_whole.matrices[m.name].pruned == m.rows * m.columns // 2


def test_towers_are_resolved_by_name_and_language_is_every_text_tower() -> None:
    assert per_tower({"vision": 0.1, "language": 0.7}, ("vision", "text", "decoder")) == {
        "vision": 0.1,
        "text": 0.7,
        "decoder": 0.7,
    }
    labels = {"m": ("vision", "layers.0", "layers.0.fc1"), "n": ("vision", "layers.1", "layers.1.fc1")}
    written = {"layers.0": 0.5, "vision": 0.1, "layers.*.fc1": 0.9, "layers.0.fc1": 0.2}
    assert written_sparsities(written, labels) == {"m": 0.2, "n": 0.9}
    assert written_sparsities({"layers.0": 0.5, "vision": 0.1}, labels) == {"m": 0.5, "n": 0.1}


def test_channel_ratios_are_the_share_of_a_unit_s_weights() -> None:
    model = build("blip_vqa", 2).model
    parts = anatomy(model)
    made = allocate(model, Uniform(sparsity=0.5))
    names = list(made.matrices)
    counts = {
        n: made.matrices[n].model_copy(update={"pruned": i % made.matrices[n].weights}) for i, n in enumerate(names)
    }
    made = made.model_copy(update={"matrices": counts})
    ratios = made.unit_ratios(parts)
    unit = next(u for u in parts if u.name.startswith("vision") and not u.is_attention)
    inside = [m for n, m in made.matrices.items() if n.startswith(unit.path + ".")]
    assert len(inside) == 2
    assert ratios[unit.name] == pytest.approx(sum(m.pruned for m in inside) / sum(m.weights for m in inside))


def test_channels_are_written_as_ranges() -> None:
    assert encode_channels([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert decode_channels("0-2,5,7-8") == (0, 1, 2, 5, 7, 8)
    assert encode_channels([]) == ""
    assert decode_channels("") == ()


def test_a_channel_plan_says_what_stays() -> None:
    model = build("vit", 3).model
    parts = anatomy(model)
    kept = {u.name: torch.arange(u.channels) % 2 == 0 for u in parts}
    made = Plan.from_masks(parts, kept)
    for unit in parts:
        assert made.kept(unit).tolist() == list(range(0, unit.channels, 2))


# metrics


class Favours(nn.Module):
    """A language model that gives token 3 the odds 1 to 3 against each of three others."""

    device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        logits = torch.tensor([0.0, 0.0, 0.0, math.log(3.0)]).expand(*input_ids.shape, 4)
        return type("Output", (), {"logits": logits})()


class ByDigit:
    """A token a digit."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(digit) for digit in text]}


def test_perplexity_is_the_geometric_mean_of_inverse_odds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Odds of 1/2 for a 3 and 1/6 for the rest; the first token of each window is given."""
    (tmp_path / "text.txt").write_text("0331203")
    task = Text(tokenizer="none", evaluation=tmp_path / "text.txt", length=4, bf16=False)
    monkeypatch.setattr(Text, "_tokenizer", ByDigit())
    found = task.evaluate(Favours(), progress=False)["perplexity"]
    assert found == pytest.approx((2 * 2 * 6 * 6 * 2) ** (1 / 5))  # 0|331, 2|03
    first = task.evaluate(Favours(), 1, progress=False)["perplexity"]
    assert first == pytest.approx((2 * 2 * 6) ** (1 / 3))


def test_windows_by_hand() -> None:
    assert windows(7, 4, 4) == [(0, 4, 1), (4, 7, 1)]
    assert windows(7, 4, 2) == [(0, 4, 1), (2, 6, 2), (4, 7, 2)]
    assert windows(1, 4, 4) == []


# data


def test_data_are_counted_and_told_apart() -> None:
    def seen(*batches: Any) -> Fingerprint:
        fingerprint = Fingerprint(batches)
        list(fingerprint)
        return fingerprint

    found = seen(
        {"a": torch.zeros(2, 3), "note": "x"}, {"b": torch.zeros(5), "a": torch.zeros(3, 3)}, torch.zeros(1, 2)
    )
    assert found.summary(bf16=True) == {"batches": 3, "sequences": 6, "sha256": found.digest, "bf16": True}
    assert found.largest == 3
    assert seen({}, 3.0).summary()["sequences"] == 0
    plain = seen({"a": torch.zeros(2, 3)}).digest
    assert plain == seen({"a": torch.zeros(2, 3)}).digest
    others = (
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3).int()},
        {"a": torch.ones(2, 3)},
    )
    assert len({plain, *(seen(other).digest for other in others)}) == 5
