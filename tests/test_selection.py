"""Selection under a budget: exact, floored, aligned, deterministic."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus import PrunusError
from prunus.structured.selection import select


@st.composite
def problems(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    widths = draw(st.lists(st.integers(1, 70), min_size=1, max_size=6))
    coarse = draw(st.booleans())  # many ties
    scores, costs = {}, {}
    for index, width in enumerate(widths):
        score = torch.randn(width, generator=generator)
        scores[f"u{index}"] = score.round() if coarse else score
        costs[f"u{index}"] = float(draw(st.integers(1, 50)))
    return scores, costs


def pruned_cost(kept, costs) -> float:
    return sum(costs[name] * int((~mask).sum()) for name, mask in kept.items())


@given(problems(), st.floats(0.01, 0.95))
@settings(deadline=None)
def test_the_budget_is_met_to_within_one_channel(problem, ratio) -> None:
    scores, costs = problem
    total = sum(costs[name] * score.numel() for name, score in scores.items())
    try:
        kept = select(scores, costs, ratio)
    except PrunusError:
        floors = sum(costs[name] for name in scores)
        assert ratio * total > total - floors
        return
    assert abs(pruned_cost(kept, costs) - ratio * total) <= max(costs.values())
    assert all(mask.any() for mask in kept.values())
    again = select(scores, costs, ratio)
    assert all(torch.equal(kept[name], again[name]) for name in kept)


@given(problems(), st.floats(0.05, 0.6), st.sampled_from([8, 16, 32]))
@settings(deadline=None)
def test_aligned_widths_are_multiples_inside_the_same_budget(problem, ratio, align) -> None:
    scores, costs = problem
    total = sum(costs[name] * score.numel() for name, score in scores.items())
    try:
        kept = select(scores, costs, ratio, align=align)
    except PrunusError:
        return
    for mask in kept.values():
        width = int(mask.sum())
        assert width == mask.numel() or width % align == 0
    assert abs(pruned_cost(kept, costs) - ratio * total) <= align * max(costs.values())


@given(problems(), st.integers(1, 10))
@settings(deadline=None)
def test_every_unit_keeps_the_minimum_and_its_lowest_scores(problem, minimum) -> None:
    scores, costs = problem
    try:
        kept = select(scores, costs, 0.5, minimum=minimum)
    except PrunusError:
        return
    for name, mask in kept.items():
        assert int(mask.sum()) >= min(minimum, mask.numel())
        if not mask.all():
            assert scores[name][mask].max() <= scores[name][~mask].min()


def test_an_impossible_ratio_says_what_is_possible() -> None:
    with pytest.raises(PrunusError, match=r"at most 0\.5000"):
        select({"a": torch.randn(2), "b": torch.randn(2)}, {"a": 1.0, "b": 1.0}, 0.99)


def test_a_score_that_is_not_finite_names_its_unit() -> None:
    with pytest.raises(PrunusError, match="b"):
        select({"a": torch.randn(4), "b": torch.tensor([0.0, float("nan")])}, {"a": 1.0, "b": 1.0}, 0.5)
