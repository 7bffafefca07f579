"""What pruners know about inputs: by sequence, whatever the cut into batches, the padding and the shape layers are given."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM

from prunus import OWL, DSnoT, PrunusError, WalkOptions, allocate, matrices, prune, prune_matrix
from prunus.unstructured import Scored, Seen, Statistic, refuse_gradients
from prunus.unstructured.padding import counted_positions, has_padding, sequences_of
from prunus.unstructured.recorder import gather
from prunus.unstructured.statistics import Gram, SquaredNorm, Statistics, Sum, Variance
from prunus.unstructured.walk import Visit, Walk
from tests.families import build

EVERYTHING = (SquaredNorm, Sum, Variance, Gram)
SEQUENCES = [np.array([[1.0, 2.0], [3.0, -2.0]]), np.array([[10.0, 0.0], [11.0, 1.0], [15.0, 5.0], [0.0, 2.0]])]
"""Two sequences of two and four tokens, two columns."""


def by_hand() -> dict[str, np.ndarray]:
    tokens = np.concatenate(SEQUENCES)
    return {
        "squares": (tokens**2).sum(0) / 2,
        "sums": tokens.sum(0) / 2,
        "variances": (2 * SEQUENCES[0].var(0) + 4 * SEQUENCES[1].var(0)) / 6,
        "gram": 2 / 2 * tokens.T @ tokens,
    }


def found(statistics: Statistics) -> dict[str, Tensor]:
    return {
        name: statistics[kind].value
        for name, kind in zip(("squares", "sums", "variances", "gram"), EVERYTHING, strict=True)
    }


def test_statistics_are_those_of_the_definition_one_sequence_at_a_time_or_both_at_once() -> None:
    one_by_one, at_once = (Statistics(EVERYTHING, 3, 2) for _ in range(2))
    for sequence in SEQUENCES:
        one_by_one.add(torch.tensor(sequence), 1)
    at_once.add(torch.tensor(np.concatenate(SEQUENCES)), 2, torch.tensor([0, 0, 1, 1, 1, 1]))
    for statistics in (one_by_one, at_once):
        assert statistics.tokens == 6
        assert {statistics[kind].sequences for kind in EVERYTHING} == {2}
        for name, expected in by_hand().items():
            np.testing.assert_allclose(found(statistics)[name].numpy(), expected, rtol=1e-6, err_msg=name)


def test_a_gram_matrix_is_added_up_by_panels_and_is_its_own_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.unstructured.statistics.PANEL", 3)
    x, known = torch.randn(20, 7), Statistics([Gram], 3, 7)
    for part in x.split(8):
        known.add(part)
    found = known[Gram].value
    torch.testing.assert_close(found, 2 / 3 * x.T @ x)
    assert torch.equal(found, found.T)
    assert not known[Gram].total[3:, :3].any()  # most of what lies below the diagonal is never computed


def test_equal_sequences_need_no_index_and_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 5, 4) + torch.arange(3.0)[:, None, None] * 10
    whole, strips = (Statistics([Variance], 3, 4) for _ in range(2))
    whole.add(x.flatten(0, 1), 3)
    monkeypatch.setattr("prunus.unstructured.statistics.STRIP", 8)
    strips.add(x.flatten(0, 1), 3)
    expected = x.var(dim=1, unbiased=False).mean(0)
    torch.testing.assert_close(whole[Variance].value, expected)
    torch.testing.assert_close(strips[Variance].value, expected)


def test_rows_know_their_sequence() -> None:
    x = torch.randn(2, 3, 4)
    visit = Visit(0, "block", {"hidden_states": x})
    for given in (x, x.reshape(-1, 4)):
        assert sequences_of(visit, given)[0] == 2
        assert sequences_of(visit, given)[1].tolist() == [0, 0, 0, 1, 1, 1]
    packed = Visit(0, "block", {"hidden_states": x[0], "cu_seqlens": torch.tensor([0, 1, 3])})
    assert sequences_of(packed, x[0])[0] == 2
    assert sequences_of(packed, x[0])[1].tolist() == [0, 1, 1]
    assert sequences_of(Visit(0, "block", {"hidden_states": x[0]}), x[0])[0] == 1


def rows(inputs: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    return [{k: v[at : at + size] for k, v in inputs.items()} for at in range(0, len(inputs["input_ids"]), size)]


def opt_batches() -> tuple[nn.Module, dict[str, Tensor]]:
    case = build("opt", 3)
    return case.model, {"input_ids": torch.randint(10, 50, (4, 6), generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize("size", [2, 4])
def test_layers_with_flattened_inputs_count_every_sequence(size: int) -> None:
    """OPT's MLPs are given (N·T, C)."""
    masks, outliers = [], []
    for cut in (1, size):
        model, inputs = opt_batches()
        plan = allocate(model, OWL(outlier=1.5), rows(inputs, cut), progress=False)
        outliers.append(plan.method["allocation"]["scores"])
        prune(model, DSnoT(), rows(inputs, cut), options=WalkOptions(progress=False))
        masks.append({name: value == 0 for name, value in model.state_dict().items()})
    assert outliers[0] == outliers[1]
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())


def test_a_call_without_tokens_changes_nothing() -> None:
    statistics = Statistics(EVERYTHING, 3, 2)
    for sequence in SEQUENCES:
        statistics.add(torch.tensor(sequence), 1)
        statistics.add(torch.zeros(0, 2), 1)
    assert (statistics[Sum].sequences, statistics.tokens) == (2, 6)
    np.testing.assert_allclose(statistics[Variance].value.numpy(), by_hand()["variances"], rtol=1e-6)
    nothing = Statistics((), 3, 2)
    nothing.add(torch.full((3, 2), torch.nan), 1)
    assert nothing.tokens == 0


def test_packed_rows_and_flattened_ones_know_their_sequence() -> None:
    x = torch.randn(2, 3, 4)
    packed = torch.randn(7, 4)
    bounds = {"cu_seqlens": torch.tensor([0, 4, 5, 7])}
    count, places = sequences_of(Visit(0, "block", bounds), packed)
    assert (count, places.tolist()) == (3, [0, 0, 0, 0, 1, 2, 2])
    # bounds of something else, and what else a block is given, say nothing
    other = {
        "cu_seqlens": torch.tensor([0, 3, 5]),
        "position": torch.zeros(7, 1),
        "four": torch.zeros(7, 1, 1, 1),
        "x": x,
    }
    assert sequences_of(Visit(0, "block", other), packed)[0] == 1
    assert sequences_of(Visit(0, "block", {**other, "hidden": torch.zeros(3, 2, 5)}), x.reshape(6, 4))[0] == 2
    assert sequences_of(Visit(0, "block", {"cu_seqlens": [0, 7]}), packed)[0] == 1
    count, places = sequences_of(Visit(0, "block", {}), torch.randn(2, 3, 5, 4))
    assert (count, places.tolist()) == (2, [0] * 15 + [1] * 15)
    assert sequences_of(Visit(0, "block", {}), torch.zeros(1, 0, 4))[1].tolist() == []
    assert sequences_of(Visit(0, "block", {}), torch.zeros(1, 1, 4))[1].tolist() == [0]


def counted(x: Tensor, **arguments: Any) -> list[bool] | None:
    found = counted_positions(Visit(0, "block", arguments), x)
    return None if found is None else found.tolist()


def test_masks_count_where_they_are_over_a_layer_s_inputs() -> None:
    x = torch.zeros(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    flat = [True, True, False, True, True, True]
    assert counted(x, attention_mask=mask) == flat
    assert counted(x.reshape(-1, 4), attention_mask=mask) == flat
    assert counted(x, attention_mask=mask[:, :2]) is None
    assert counted(torch.zeros(1, 3, 4), attention_mask=mask) is None
    assert counted(x, attention_mask=mask[:1]) == flat[:3] * 2, "one mask for all sequences"
    assert counted(torch.zeros(4, 3, 4), attention_mask=mask) is None, "two masks for four sequences"
    assert counted(torch.zeros(2, 4, 4), attention_mask=mask[:1]) is None
    assert counted(torch.zeros(3, 4), attention_mask=mask[0].bool()) == flat[:3]
    states = torch.zeros(2, 3, 4)
    for name in ("encoder_hidden_states", "key_value_states"):
        given = {name: states, "encoder_attention_mask": mask, "attention_mask": mask.flip(1)}
        assert counted(states, **given) == flat
        assert counted(x, **given) == [False, True, True, True, True, True]


def test_a_q_former_s_mask_is_over_queries_and_then_text() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
    text, queries, both = (torch.zeros(2, length, 8) for length in (4, 2, 6))
    assert counted(text, attention_mask=mask, query_length=2) == [True, True, True, False] + [True] * 4
    assert counted(both, attention_mask=mask, query_length=2) == mask.bool().flatten().tolist()
    assert counted(queries, attention_mask=mask, query_length=2) is None
    assert counted(both, attention_mask=mask, query_length=0) == mask.bool().flatten().tolist()
    assert counted(text, attention_mask=mask, query_length="2") is None
    assert counted(both.reshape(-1, 8), attention_mask=mask, query_length=2) == mask.bool().flatten().tolist()
    assert counted(text[:1], attention_mask=mask[0], query_length=2) == [True, True, True, False]
    one = torch.tensor([[1, 1, 0]])
    assert counted(torch.zeros(1, 2, 8), attention_mask=one, query_length=1) == [True, False]


def test_masks_are_read_by_what_they_hold() -> None:
    x = torch.zeros(1, 3, 2)
    shown = [True, True, False]
    causal = torch.ones(3, 3).tril() * torch.tensor([1.0, 1, 0])
    for mask in (
        {"full": None, "sliding": torch.tensor([[1, 1, 0]])},
        torch.tensor([[2, 1, 0]]),
        torch.tensor([[0.5, 1.0, 0.0]]),
        torch.tensor([[0.0, 0.0, -1e3]]),
        torch.tensor([[0.0, -999.0, -1001.0]]),
        torch.tensor([[1.0, 0.0, -1e4]]),
        causal[None, None].long(),
        (causal == 0)[None],
        ~causal.bool()[None, None].expand(1, 4, 3, 3),
    ):
        assert counted(x, attention_mask=mask) == shown, mask
        assert has_padding(Visit(0, "block", {"attention_mask": mask}))
    for mask in (None, {"full": None}, {}, torch.zeros(1, 3), torch.ones(1, 3), torch.tensor([[-1.0, 0, -999]]),
                 torch.ones(1, 1, 3, 3).tril(), torch.ones(1, 1, 3, 3, dtype=torch.bool)):  # fmt: skip
        assert counted(x, attention_mask=mask) is None, mask
        assert not has_padding(Visit(0, "block", {"attention_mask": mask}))
    # two positions: the second may look at the first, or must not
    pair = torch.tensor([[[False, True], [False, False]]])
    assert counted(torch.zeros(1, 2, 2), attention_mask=pair) is None
    assert counted(torch.zeros(1, 2, 2), attention_mask=torch.tensor([[[True, False], [True, False]]])) == [True, False]
    # one query over one key: what is there says what may be looked at
    assert counted(torch.zeros(2, 1, 2), attention_mask=torch.tensor([[[True]], [[False]]])) == [True, False]
    # more queries than keys
    assert counted(torch.zeros(1, 2, 2), attention_mask=torch.tensor([[[True, False]] * 3])) == [True, False]
    with pytest.raises(PrunusError, match="sdpa"):
        has_padding(Visit(0, "block", {"attention_mask": "causal"}))


def test_means_are_by_sequence_and_of_nothing_they_are_zero() -> None:
    nothing = Statistics(EVERYTHING, 3, 2)
    for value in found(nothing).values():
        assert not value.any()
    one = Statistics(EVERYTHING, 3, 2)
    one.add(torch.tensor([[3.0, 1.0]]), 1)
    assert one[SquaredNorm].value.tolist() == [9, 1]
    assert one[Sum].value.tolist() == [3, 1]
    assert one[Variance].value.tolist() == [0, 0]
    assert one[Gram].value.tolist() == [[18, 6], [6, 2]]
    for bad in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(PrunusError, match="not finite"):
            one.add(torch.tensor([[0.0, 1.0], [bad, 0.0]]), 1)
    assert (one[Gram].sequences, one.tokens) == (1, 1)


def test_experts_and_what_stands_beside_them_count_the_same_sequences() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=1, vocab_size=50, num_local_experts=2)).eval()
    inputs = {"input_ids": torch.randint(3, 50, (5, 6), generator=torch.Generator().manual_seed(0))}
    with Walk(model, rows(inputs, 2), ["model.layers.0"]) as walk:
        [found] = [gather(model, matrices(model), [SquaredNorm], stop) for stop in walk]
    assert {statistics[SquaredNorm].sequences for statistics in found.values()} == {5}
    assert sum(s.tokens for name, s in found.items() if "gate_up_proj" in name) == 2 * 30, "two experts for every token"
    assert {s.tokens for name, s in found.items() if "self_attn" in name} == {30}


def test_what_was_seen_elsewhere_is_merged() -> None:
    whole, *parts = (Statistics(EVERYTHING, 3, 2) for _ in range(3))
    for sequence, part in zip(SEQUENCES, parts, strict=True):
        whole.add(torch.tensor(sequence))
        part.add(torch.tensor(sequence))
    parts[0].merge(parts[1])
    for name, value in found(parts[0]).items():
        torch.testing.assert_close(value, found(whole)[name])
        np.testing.assert_allclose(value.numpy(), by_hand()[name], rtol=1e-6)
    assert (parts[0].tokens, parts[0][Gram].sequences) == (6, 2)
    parts[0].merge(Statistics(EVERYTHING, 3, 2))
    assert (parts[0].tokens, parts[0][Gram].sequences) == (6, 2)
    with pytest.raises(PrunusError, match="another matrix"):
        parts[0].merge(Statistics(EVERYTHING, 3, 1))


def test_a_statistic_that_is_not_named_is_not_there() -> None:
    with pytest.raises(PrunusError, match="must name it"):
        Statistics([Sum], 3, 2)[Gram]


class Outputs(Statistic):
    """Sum of what a matrix gives."""

    source = "outputs"

    def accumulate(self, seen: Seen) -> None:
        self.total += seen.sums


class Gradients(Statistic):
    """Σ g² over batches."""

    source = "gradients"

    def accumulate(self, seen: Seen) -> None:
        self.total += seen.x.square()


class Listener(Scored):
    """Keeps what it was told."""

    method: Literal["test_listener"] = "test_listener"
    needs = (Sum, Outputs, Gradients)
    told: ClassVar[list[dict[type, Tensor]]] = []

    def scores(self, weight: Tensor, known: Statistics) -> Tensor:
        self.told.append({kind: known[kind].value.clone() for kind in self.needs})
        return weight.abs() + known[Gradients].value


def test_outputs_and_gradients_are_statistics_too() -> None:
    case = build("llama", 3)
    inputs = {**case.inputs, "labels": case.inputs["input_ids"]}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["attention_mask"][0, -1] = 0
    names = [m.name for m in matrices(case.model)]
    squares = {name: torch.zeros_like(case.model.get_submodule(name).weight) for name in names}
    case.model.eval()
    for batch in rows(inputs, 1):
        case.model.zero_grad()
        case.model(**batch).loss.backward()
        for name in names:
            squares[name] += case.model.get_submodule(name).weight.grad.square()
    case.model.zero_grad()
    weights = {name: case.model.get_submodule(name).weight.detach().clone() for name in names}
    Listener.told.clear()
    options = WalkOptions(progress=False, sequential=False)
    prune(case.model, Listener(), rows(inputs, 1), options=options)
    for name, told in zip(names, Listener.told, strict=True):
        bias = case.model.get_submodule(name).bias
        shift = 0 if bias is None else bias.detach() * inputs["attention_mask"].sum() / len(inputs["input_ids"])
        torch.testing.assert_close(told[Outputs], weights[name] @ told[Sum] + shift, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(told[Gradients], squares[name] / len(inputs["input_ids"]), rtol=1e-4, atol=1e-8)
    assert all(p.grad is None and p.requires_grad for p in case.model.parameters())
    with pytest.raises(PrunusError, match="use prune"):
        refuse_gradients(Listener())
    with pytest.raises(PrunusError, match="more than the inputs"):
        prune_matrix(torch.randn(4, 4), torch.randn(1, 2, 4), Listener())
