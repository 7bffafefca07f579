"""What pruners know about inputs: by sequence, whatever the cut into batches, the padding and the shape layers are given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus import OWL, DSnoT, WalkOptions, allocate, prune
from prunus.unstructured.recorder import sequences_of
from prunus.unstructured.statistics import InputStatistics, Need
from prunus.unstructured.walk import Visit
from tests.families import build

EVERYTHING = Need.SQUARES | Need.MOMENTS | Need.GRAM
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


def found(statistics: InputStatistics) -> dict[str, Tensor]:
    return {
        "squares": statistics.squares_C, "sums": statistics.sums_C, "variances": statistics.variances_C,
        "gram": statistics.gram_CC,
    }  # fmt: skip


def test_statistics_are_those_of_the_definition_one_sequence_at_a_time_or_both_at_once() -> None:
    one_by_one, at_once = (InputStatistics(2, EVERYTHING) for _ in range(2))
    for sequence in SEQUENCES:
        one_by_one.add(torch.tensor(sequence), 1)
    at_once.add(torch.tensor(np.concatenate(SEQUENCES)), 2, torch.tensor([0, 0, 1, 1, 1, 1]))
    for statistics in (one_by_one, at_once):
        assert statistics.tokens == 6
        assert statistics.sequences == 2
        for name, expected in by_hand().items():
            np.testing.assert_allclose(found(statistics)[name].numpy(), expected, rtol=1e-6, err_msg=name)


def test_equal_sequences_need_no_index_and_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 5, 4) + torch.arange(3.0)[:, None, None] * 10
    whole, strips = (InputStatistics(4, Need.MOMENTS) for _ in range(2))
    whole.add(x.flatten(0, 1), 3)
    monkeypatch.setattr("prunus.unstructured.statistics.STRIP", 8)
    strips.add(x.flatten(0, 1), 3)
    expected = x.var(dim=1, unbiased=False).mean(0)
    torch.testing.assert_close(whole.variances_C, expected)
    torch.testing.assert_close(strips.variances_C, expected)


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
    statistics = InputStatistics(2, EVERYTHING)
    for sequence in SEQUENCES:
        statistics.add(torch.tensor(sequence), 1)
        statistics.add(torch.zeros(0, 2), 1)
    assert (statistics.sequences, statistics.tokens) == (2, 6)
    np.testing.assert_allclose(statistics.variances_C.numpy(), by_hand()["variances"], rtol=1e-6)
    nothing = InputStatistics(2, Need.NOTHING)
    nothing.add(torch.full((3, 2), torch.nan), 1)
    assert nothing.tokens == 0
