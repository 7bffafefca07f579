"""Pruners on one matrix: the published fixtures, exact counts, and the definitions on hostile input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from prunus import DSnoT, Magnitude, PrunusError, SparseGPT, WalkOptions, Wanda, matrices, prune_matrix
from prunus.anatomy import survey
from prunus.plan.sparsity import uniform
from prunus.unstructured.patterns import NofM, Quota, parse_pattern
from prunus.unstructured.pruning import settle
from prunus.unstructured.sparsegpt import inverse_factor
from prunus.unstructured.statistics import SquaredNorm, Statistics
from tests.families import build
from tests.shared import golden

PATTERNS = ["2:4", "4:8"]
SPARSITIES = [0.3, 0.5, 0.7]
CASES = [{"sparsity": sparsity} for sparsity in SPARSITIES] + [{"pattern": pattern} for pattern in PATTERNS]
NAMES = [str(value) for value in SPARSITIES] + PATTERNS


@pytest.fixture(scope="module")
def fixture() -> dict[str, Tensor]:
    return load_file(golden("layer_pruners.safetensors"))


@pytest.mark.parametrize(("case", "name"), list(zip(CASES, NAMES, strict=True)))
def test_wanda_masks_are_the_published_ones(fixture, case, name) -> None:
    weight, pruned = prune_matrix(fixture["weight"], fixture["inputs"], Wanda(**case))
    assert torch.equal(pruned, fixture[f"wanda.pruned.{name}"])
    assert torch.equal(weight, fixture["weight"].masked_fill(pruned, 0))


def test_wanda_norms_are_the_published_ones(fixture) -> None:
    statistics = Statistics([SquaredNorm], 48, 256)
    for sample in fixture["inputs"]:
        statistics.add(sample, 1)
    torch.testing.assert_close(statistics[SquaredNorm].value, fixture["wanda.scaler_row"])


@pytest.mark.parametrize(("case", "name"), list(zip(CASES, NAMES, strict=True)))
def test_sparsegpt_weights_are_the_published_ones(fixture, case, name) -> None:
    """Published thresholds are inclusive: one weight more goes in each of the two blocks. Here it is asked for."""
    method, expected = SparseGPT(**case), fixture[f"sparsegpt.weight.{name}"]
    statistics = Statistics(method.needs, 48, 256)
    for sample in fixture["inputs"]:
        statistics.add(sample, 1)
    count = 2 * (int(48 * 128 * case["sparsity"]) + 1) if "sparsity" in case else 48 * 128
    weight, pruned = method.prune(fixture["weight"].clone(), statistics, method.quota(count))
    assert int(pruned.sum()) == count
    assert ((weight == 0) == (expected == 0)).float().mean() >= 0.999
    assert (weight - expected).norm() / expected.norm() <= 1e-3


@pytest.mark.parametrize("same_sign", [False, True])
@pytest.mark.parametrize(("case", "name"), list(zip(CASES, NAMES, strict=True)))
def test_dsnot_masks_are_the_published_ones(fixture, case, name, same_sign) -> None:
    expected = fixture[
        f"dsnot.pruned.{name}" if ":" in name else f"dsnot.pruned.{name}.{'same' if same_sign else 'any'}_sign"
    ]
    _, pruned = prune_matrix(fixture["weight"], fixture["inputs"], DSnoT(same_sign=same_sign, **case))
    assert (pruned == expected).float().mean() >= 0.999
    assert torch.equal(pruned.sum(1), expected.sum(1))


def methods() -> list:
    kinds = [
        Magnitude(),
        Magnitude(group="matrix"),
        Wanda(),
        Wanda(group="matrix"),
        SparseGPT(),
        SparseGPT(block_size=20),
    ]
    return [*kinds, DSnoT(), DSnoT(same_sign=True), DSnoT(start="magnitude"), DSnoT(start="sparsegpt")]


@given(
    st.integers(0, 2**31),
    st.integers(1, 40),
    st.integers(1, 70),
    st.floats(0, 0.99),
    st.sampled_from(range(10)),
    st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_exactly_as_many_go_as_asked(seed, rows, columns, sparsity, which, coarse) -> None:
    torch.manual_seed(seed)
    weight, inputs = torch.randn(rows, columns), torch.randn(3, 5, columns)
    if coarse:  # many ties, and inputs that are always zero
        weight, inputs = weight.round(), inputs.round() * (torch.rand(columns) > 0.3)
    weight[weight == 0] = 1.0
    method = methods()[which].model_copy(update={"sparsity": sparsity})
    new, pruned = prune_matrix(weight, inputs, method)
    per_row = int(columns * sparsity + 1e-9)
    assert bool((new[pruned] == 0).all())
    assert bool(new.isfinite().all())
    if method.rounds_by_row:
        assert pruned.sum(1).tolist() == [per_row] * rows
    else:
        assert int(pruned.sum()) == int(rows * columns * sparsity + 1e-9)


@given(
    st.integers(0, 2**31),
    st.integers(1, 20),
    st.integers(1, 8),
    st.sampled_from(["1:2", "2:4", "4:8", "1:4", "3:5"]),
    st.sampled_from(range(10)),
)
@settings(deadline=None, max_examples=100)
def test_every_group_keeps_n_of_m(seed, rows, groups, pattern, which) -> None:
    torch.manual_seed(seed)
    n_of_m = parse_pattern(pattern)
    assert n_of_m is not None
    columns = groups * n_of_m.of
    method = methods()[which].model_copy(update={"pattern": pattern})
    _, pruned = prune_matrix(torch.randn(rows, columns), torch.randn(3, 5, columns), method)
    assert bool((pruned.view(rows, groups, n_of_m.of).sum(2) == n_of_m.of - n_of_m.kept).all())


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 12), st.data())
@settings(deadline=None)
def test_a_remainder_goes_where_the_next_score_is_lowest(seed, rows, columns, data) -> None:
    torch.manual_seed(seed)
    count = data.draw(st.integers(0, rows * columns))
    scores = torch.randn(rows, columns)
    pruned = Quota(count).select(scores)
    assert int(pruned.sum()) == count
    assert int(pruned.sum(1).max() - pruned.sum(1).min()) <= 1
    for row in range(rows):
        if 0 < int(pruned[row].sum()) < columns:
            assert scores[row][pruned[row]].max() <= scores[row][~pruned[row]].min()


def test_the_factor_is_that_of_the_damped_inverse() -> None:
    torch.manual_seed(0)
    x = torch.randn(100, 24, dtype=torch.float64)
    gram = x.T @ x
    factor = inverse_factor(gram, 0.01)
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(24)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.T @ factor, damped.inverse())


def test_an_input_that_is_always_zero_counts_as_one() -> None:
    x = torch.randn(100, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, 3] = 0
    gram = x.T @ x
    factor = inverse_factor(gram, 0.01)
    assert gram[3, 3] == 0
    gram[3, 3] = 1
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(24)
    torch.testing.assert_close(factor.T @ factor, damped.inverse())


def test_sparsegpt_takes_more_damping_before_it_gives_up() -> None:
    x = torch.ones(4, 3, 8) * 1e3  # rank one
    new, _ = prune_matrix(torch.randn(6, 8), x, SparseGPT(damping=1e-8))
    assert bool(new.isfinite().all())
    with pytest.raises(PrunusError, match="singular"):
        inverse_factor(torch.full((4, 4), -1.0), 0.01)


def test_sparsegpt_beats_wanda_on_the_output() -> None:
    torch.manual_seed(0)
    weight, inputs = torch.randn(64, 96), torch.randn(8, 40, 96) @ torch.randn(96, 96)
    errors = {}
    for method in (Magnitude(), Wanda(), SparseGPT()):
        new, _ = prune_matrix(weight, inputs, method)
        errors[method.method] = (inputs @ (new - weight).T).norm()
    assert errors["sparsegpt"] < errors["wanda"] < errors["magnitude"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Wanda(pattern="2:4", sparsity=0.7), r"sparsity = 0.7"),
        (lambda: Wanda(pattern="4:2"), r"pattern = '4:2'"),
        (lambda: Wanda(pattern="half"), r"n:m with 0 < n < m"),
        (lambda: Wanda(sparsity=1.0), r"sparsity"),
        (lambda: Wanda(sparcity=0.5), r"did you mean sparsity"),
        (lambda: SparseGPT(group="row"), r"no such field"),
        (lambda: prune_matrix(torch.ones(3, 6), torch.ones(1, 2, 6), Wanda(pattern="2:4")), r"no multiple of 4"),
        (lambda: prune_matrix(torch.ones(3, 6), torch.ones(1, 2, 5), Wanda()), r"samples, tokens, in"),
        (lambda: prune_matrix(torch.ones(3, 6), torch.full((1, 2, 6), torch.nan), Wanda()), r"not finite"),
        (
            lambda: prune_matrix(torch.ones(3, 6), torch.ones(1, 2, 6), Wanda(sparsity={"vision": 0.5})),
            r"give one number",
        ),
    ],
)
def test_bad_requests_are_refused(make, message) -> None:
    with pytest.raises(PrunusError, match=message):
        make()


@pytest.mark.parametrize(
    ("weight", "inputs"), [((6,), (1, 2, 6)), ((1, 3, 6), (1, 2, 3)), ((3, 6), (2, 6)), ((3, 6), (1, 1, 2, 6)), ((3, 6), (1, 6, 5))]
)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(weight: tuple[int, ...], inputs: tuple[int, ...]) -> None:
    with pytest.raises(PrunusError, match="samples, tokens, in"):
        prune_matrix(torch.ones(weight), torch.ones(inputs), Magnitude())


@pytest.mark.parametrize("method", [Magnitude(), SparseGPT(), DSnoT()])
def test_the_weight_that_is_given_stays(method) -> None:
    weight = torch.randn(4, 8)
    before = weight.clone()
    prune_matrix(weight, torch.randn(2, 3, 8), method)
    assert torch.equal(weight, before)


def test_what_is_asked_for_follows_from_the_pattern() -> None:
    assert Wanda().target == 0.5
    assert Wanda(sparsity=0.3).target == 0.3
    assert Wanda(pattern="1:4").target == 0.75
    assert Wanda(pattern=124).pattern == "2:4", "as YAML reads it"
    assert Wanda(pattern="2:4", sparsity=0.5).target == 0.5
    assert Wanda(pattern="2:4", sparsity={"vision": 0.5}).target == {"vision": 0.5}
    assert parse_pattern("3:5") == NofM(3, 5)
    assert parse_pattern("unstructured") is None
    for sparsity in (0.4, 0.6, {"vision": 0.5, "language": 0.7}):
        with pytest.raises(PrunusError, match=r"2:4 always prunes 0\.5"):
            Wanda(pattern="2:4", sparsity=sparsity)
    for pattern in ("0:4", "4:4", "2:4:8", "2", "a2:4"):
        with pytest.raises(PrunusError, match="0 < n < m"):
            parse_pattern(pattern)


@pytest.mark.parametrize(
    ("kind", "name", "lowest", "highest"),
    [
        (DSnoT, "max_cycles", 0, 1_000_000),
        (DSnoT, "variance_power", 0, 100),
        (DSnoT, "threshold", 0, 1e6),
        (SparseGPT, "damping", 1e-12, 1e6),
        (SparseGPT, "block_size", 1, 1_000_000),
        (Wanda, "sparsity", 0, 0.999),
    ],
)
def test_settings_have_limits(kind, name, lowest, highest) -> None:
    for value in (lowest, highest):
        assert getattr(kind(**{name: value}), name) == value
    for value in (-0.01, 0 if lowest else -1, highest + 1):
        with pytest.raises(PrunusError, match=name):
            kind(**{name: value})


def test_defaults_are_those_of_the_papers() -> None:
    assert (SparseGPT().block_size, SparseGPT().damping) == (128, 0.01)
    assert WalkOptions().model_dump() == {"sequential": True, "bf16": False, "activations": "keep", "progress": True}


@pytest.mark.parametrize("kind", [SparseGPT, DSnoT, Wanda])
def test_zeros_that_stay_go_first_and_all_of_them(kind) -> None:
    """In a block of SparseGPT, in rows, and in groups of four of which one has more zeros than go."""
    torch.manual_seed(0)
    inputs = Statistics(kind().needs, 2, 8)
    for _ in range(3):
        inputs.add(torch.randn(20, 8), 1)
    zeros = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 1, 1, 0]]).bool()
    weight = torch.randn(2, 8).masked_fill(zeros, 0)
    for quota, count in (
        (Quota(8, zeros=zeros), 8),
        (Quota(4, zeros=zeros), 7),
        (Quota(8, NofM(2, 4), zeros=zeros), 10),
    ):
        new, gone = kind().prune(weight.clone(), inputs, quota)
        assert bool((gone[zeros]).all())
        assert bool((new[gone] == 0).all())
        assert kind is DSnoT or int(gone.sum()) == count


def test_settling_on_a_plan_touches_nothing_and_checks_everything() -> None:
    model = build("instructblip_t5", 1).model
    candidates = matrices(model)
    everything = uniform(type(model).__name__, candidates, 0.5)
    chosen, plan = settle(model, Wanda(), everything, (), ())
    assert chosen == candidates, "a plan says by itself that the connector is in it"
    assert plan.block_weights == survey(model).weights
    chosen, _ = settle(model, Wanda(), everything, ("vision",), ())
    assert {m.tower for m in chosen} == {"vision"}
    few = everything.model_copy(update={"matrices": dict(list(everything.matrices.items())[:3])})
    assert settle(model, Wanda(), few, (), ())[0] == candidates[:3]
    fits = [m for m in candidates if m.columns % 4 == 0]
    half = uniform(type(model).__name__, fits, 0.5)
    counted = {
        n: m.model_copy(update={"pruned": m.pruned + 1, "asked": m.weights // 2}) for n, m in half.matrices.items()
    }
    recorded = half.model_copy(update={"matrices": counted})
    for fitting in (half, recorded):
        assert len(settle(model, Wanda(pattern="2:4"), fitting, (), ())[0]) == len(fits)
    name = fits[0].name
    more = half.model_copy(
        update={"matrices": {**half.matrices, name: half.matrices[name].model_copy(update={"pruned": 1})}}
    )
    with pytest.raises(PrunusError, match="the pattern 2:4 prunes the same share"):
        settle(model, Wanda(pattern="2:4"), more, (), ())
    for method, towers in (
        (Wanda(), {"vision", "language"}),
        (Wanda(sparsity={"vision": 0.5}), {"vision"}),
        (Wanda(sparsity={"vision": 0.5, "connector": 0.5}), {"vision", "connector"}),
    ):
        chosen, plan = settle(model, method, None, (), ())
        assert {m.tower for m in chosen} == set(plan.towers) == towers


def test_the_type_of_the_weight_stays() -> None:
    weight, pruned = prune_matrix(torch.randn(4, 8).bfloat16(), torch.randn(2, 3, 8).bfloat16(), SparseGPT())
    assert weight.dtype == torch.bfloat16
    assert int(pruned.sum()) == 16
    assert NofM(2, 4).sparsity == 0.5
