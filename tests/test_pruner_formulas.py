"""Every formula of the pruners against a plain implementation of its own in numpy, through `prune` on a model that holds the matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from prunus import DSnoT, Magnitude, PrunusError, SparseGPT, Uniform, WalkOptions, Wanda, allocate, prune, prune_matrix
from prunus.unstructured.sparsegpt import inverse_factor
from tests.families import build
from tests.holder import FC1, Holder
from tests.shared import golden

QUIET = WalkOptions(progress=False)
Array = np.ndarray


def pruned(weight: Tensor, inputs: Tensor, method: Any, size: int = 1, plan: Any = None) -> tuple[Array, Array]:
    """The weight after `prune`, and where it is zero; inputs (samples, tokens, in) in batches of `size` samples."""
    model = Holder(tuple(weight.shape))  # type: ignore[arg-type]
    model.hold(0, weight)
    prune(model, method, list(inputs.split(size)), plan and plan(model), [FC1], options=QUIET)
    new = model.fc1().detach()
    return new.double().numpy(), (new == 0).numpy()


# the published fixtures


@pytest.fixture(scope="module")
def fixture() -> dict[str, Tensor]:
    return load_file(golden("layer_pruners.safetensors"))


CASES: list[tuple[dict[str, Any], str]] = [({"sparsity": s}, str(s)) for s in (0.3, 0.5, 0.7)]
CASES += [({"pattern": p}, p) for p in ("2:4", "4:8")]


@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize(("case", "name"), CASES)
def test_published_masks_come_out_of_prune(fixture: dict[str, Tensor], case: Any, name: str, size: int) -> None:
    weight, inputs = fixture["weight"], fixture["inputs"]
    assert np.array_equal(pruned(weight, inputs, Wanda(**case), size)[1], fixture[f"wanda.pruned.{name}"].numpy())
    for same_sign in (True, False):
        key = f"dsnot.pruned.{name}" if ":" in name else f"dsnot.pruned.{name}.{'same' if same_sign else 'any'}_sign"
        _, zeros = pruned(weight, inputs, DSnoT(same_sign=same_sign, **case), size)
        assert (zeros == fixture[key].numpy()).mean() >= 0.999


@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize(("case", "name"), CASES)
def test_published_weights_come_out_of_prune(fixture: dict[str, Tensor], case: Any, name: str, size: int) -> None:
    """Published thresholds are inclusive: one weight more goes in each of the two blocks. The plan asks for it."""
    count = 2 * (int(48 * 128 * case["sparsity"]) + 1) if "sparsity" in case else 48 * 128

    def plan(model: Holder) -> Any:
        drawn = allocate(model, Uniform(sparsity=0.5), include=[FC1])
        matrices = {key: m.model_copy(update={"pruned": count}) for key, m in drawn.matrices.items()}
        return drawn.model_copy(update={"matrices": matrices})

    new, _ = pruned(fixture["weight"], fixture["inputs"], SparseGPT(**case), size, plan if "sparsity" in case else None)
    expected = fixture[f"sparsegpt.weight.{name}"].double().numpy()
    assert ((new == 0) == (expected == 0)).mean() >= 0.999
    assert np.linalg.norm(new - expected) / np.linalg.norm(expected) <= 1e-3


# plain implementations


def lowest_of_rows(scores: Array, each: int) -> Array:
    mask = np.zeros(scores.shape, dtype=bool)
    for row, order in enumerate(np.argsort(scores, axis=1, kind="stable")):
        mask[row, order[:each]] = True
    return mask


def lowest_in_groups(scores: Array, keep: int, of: int) -> Array:
    groups = scores.reshape(-1, of)
    return lowest_of_rows(groups, of - keep).reshape(scores.shape)


def example(seed: int, rows: int = 12, columns: int = 16) -> tuple[Tensor, Tensor]:
    """Inputs with columns of very different size, mean and spread, such that wrong exponents and axes show."""
    torch.manual_seed(seed)
    scale = torch.exp(torch.randn(columns))
    inputs = (torch.randn(5, 7, columns) + 0.7 * torch.randn(columns) + 0.5 * torch.randn(5, 1, columns)) * scale
    return torch.randn(rows, columns), inputs


def norms(inputs: Tensor) -> Array:
    x = inputs.double().numpy()
    return np.sqrt((x**2).sum((0, 1)) / len(x))  # type: ignore[no-any-return]


def test_magnitude_and_wanda_take_the_lowest_of_every_row_or_of_the_matrix() -> None:
    weight, inputs = example(0)
    plain = np.abs(weight.double().numpy())
    for method, scores in ((Magnitude, plain), (Wanda, plain * norms(inputs))):
        assert np.array_equal(pruned(weight, inputs, method(sparsity=0.4))[1], lowest_of_rows(scores, 6))
        whole = pruned(weight, inputs, method(sparsity=0.4, group="matrix"))[1]
        count = int(12 * 16 * 0.4)
        assert np.array_equal(whole, lowest_of_rows(scores.reshape(1, -1), count).reshape(12, 16))
        assert np.array_equal(pruned(weight, inputs, method(pattern="1:4"))[1], lowest_in_groups(scores, 1, 4))


def surgeon(weight: Array, inputs: Array, damping: float, block: int, sparsity: float, nofm: Any = None) -> Array:
    """SparseGPT as its paper writes it: the inverse, its Cholesky factor, a column at a time."""
    x = inputs.reshape(-1, inputs.shape[-1])
    hessian = 2 / len(inputs) * x.T @ x
    hessian += damping * np.diag(hessian).mean() * np.eye(len(hessian))
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    weight, (rows, columns) = weight.copy(), weight.shape
    gone = np.zeros(weight.shape, dtype=bool)
    for j in range(columns):
        if nofm is None and j % block == 0:
            stop = min(j + block, columns)
            score = weight[:, j:stop] ** 2 / np.diag(upper)[j:stop] ** 2
            count = int(sparsity * rows * columns + 1e-9) * stop // columns - gone.sum()
            gone[:, j:stop] = lowest_of_rows(score.T.reshape(1, -1), count).reshape(stop - j, rows).T
        if nofm is not None and j % nofm[1] == 0:
            stop = j + nofm[1]
            gone[:, j:stop] = lowest_of_rows(weight[:, j:stop] ** 2 / np.diag(upper)[j:stop] ** 2, nofm[1] - nofm[0])
        error = weight[:, j] * gone[:, j] / upper[j, j]
        weight[:, j:] -= np.outer(error, upper[j, j:])
        weight[gone[:, j], j] = 0
    return weight


@pytest.mark.parametrize(
    ("settings", "block", "damping"),
    [
        ({"sparsity": 0.5}, 128, 0.01), ({"sparsity": 0.3, "block_size": 5}, 5, 0.01),
        ({"sparsity": 0.6, "block_size": 40, "damping": 0.3}, 40, 0.3), ({"pattern": "2:4"}, 128, 0.01), ({"pattern": "1:4", "block_size": 6}, 6, 0.01),
    ],
)  # fmt: skip
def test_sparsegpt_is_its_plain_self(settings: Any, block: int, damping: float) -> None:
    weight, inputs = example(1, 6, 48)
    nofm = tuple(map(int, settings["pattern"].split(":"))) if "pattern" in settings else None
    expected = surgeon(
        weight.double().numpy(), inputs.double().numpy(), damping, block, settings.get("sparsity", 0), nofm
    )
    new, zeros = pruned(weight, inputs, SparseGPT(**settings))
    assert np.array_equal(zeros, expected == 0)
    np.testing.assert_allclose(new, expected, rtol=2e-3, atol=2e-3)
    assert (SparseGPT().block_size, SparseGPT().damping) == (128, 0.01)


def test_inputs_that_are_always_zero_lose_their_weights_and_hurt_nobody() -> None:
    weight, inputs = example(2)
    inputs[..., 3] = 0
    _, zeros = pruned(weight, inputs, SparseGPT(sparsity=0.5))
    assert zeros[:, 3].all()
    others = [j for j in range(16) if j != 3]
    without, _ = pruned(weight[:, others], inputs[..., others], SparseGPT(sparsity=(8 * 12 - 12) / (12 * 15)))
    assert (zeros[:, others] == (without == 0)).mean() > 0.95


def test_more_damping_is_ten_times_more() -> None:
    singular = torch.ones(4, 4) * 1e6
    factor = inverse_factor(singular, 1e-9)
    for damping in (1e-9, 1e-8, 1e-7, 1e-6):
        _, failed = torch.linalg.cholesky_ex(singular + damping * 1e6 * torch.eye(4))
        if not failed:
            break
    expected = (singular.double() + damping * 1e6 * torch.eye(4).double()).inverse()
    torch.testing.assert_close(
        (factor.double().T @ factor.double()), expected, rtol=0.2, atol=0.2 * float(expected.max())
    )
    with pytest.raises(PrunusError) as caught:
        inverse_factor(torch.full((4, 4), -1.0), 0.01)
    assert caught.value.value == pytest.approx(10.0)


def swapped(weight: Array, inputs: Array, start: str, each: int, *, cycles: int = 50, threshold: float = 0.1,
            power: float = 1.0, same_sign: bool = True, nofm: Any = None) -> Array:  # fmt: skip
    """DSnoT as its paper and code have it, a row at a time."""
    tokens = inputs.reshape(-1, inputs.shape[-1])
    sums, variance = inputs.sum(1).mean(0), inputs.var(1).mean(0)
    wanda = np.abs(weight) * np.sqrt((tokens**2).sum(0) / len(inputs))
    hessian = 2 / len(inputs) * tokens.T @ tokens
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(len(hessian))
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    scores = {"wanda": wanda, "magnitude": np.abs(weight), "sparsegpt": (weight / np.diag(upper)) ** 2}[start]
    mask = lowest_of_rows(scores, each) if nofm is None else lowest_in_groups(scores, *nofm)
    for row in range(len(weight)):
        change = weight[row] * sums
        gain, used, error = change / variance**power, set(), change[mask[row]].sum()
        first = np.sign(error)
        for _ in range(cycles):
            if abs(error) <= threshold:
                break
            grow = [j for j in np.flatnonzero(mask[row]) if j not in used and change[j] * error > 0]
            if not grow:
                break
            grown = max(grow, key=lambda j: abs(gain[j]))
            if nofm is None:
                cut = [j for j in np.flatnonzero(~mask[row]) if j not in used and change[j] * error < 0]
                cut_scores = wanda[row]
            else:
                group = range(grown - grown % nofm[1], grown - grown % nofm[1] + nofm[1])
                cut = [j for j in group if not mask[row][j] and j not in used]
                cut_scores = scores[row]
            if not cut:
                break
            gone = min(cut, key=lambda j: cut_scores[j])
            after = error + change[gone] - change[grown]
            if (same_sign or nofm is not None) and np.sign(after) != first:
                break
            mask[row][grown], mask[row][gone] = False, True
            used |= {grown, gone}
            error = after
    return mask


VARIANTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"same_sign": False}, {"same_sign": False}),
    ({"max_cycles": 1}, {"cycles": 1}),
    ({"max_cycles": 2, "same_sign": False}, {"cycles": 2, "same_sign": False}),
    ({"threshold": 4.0}, {"threshold": 4.0}),
    ({"variance_power": 0.0}, {"power": 0.0}),
    ({"variance_power": 2.0}, {"power": 2.0}),
]


@pytest.mark.parametrize("pattern", [None, "2:4", "4:8"])
@pytest.mark.parametrize("start", ["wanda", "magnitude", "sparsegpt"])
def test_dsnot_is_its_plain_self(start: str, pattern: str | None) -> None:
    masks = set()
    for ours, theirs in VARIANTS:
        for seed in range(2):
            weight, inputs = example(seed, 20, 24)
            budget = {"sparsity": 0.5} if pattern is None else {"pattern": pattern}
            nofm = None if pattern is None else tuple(map(int, pattern.split(":")))
            expected = swapped(weight.double().numpy(), inputs.double().numpy(), start, 12, nofm=nofm, **theirs)
            _, zeros = pruned(weight, inputs, DSnoT(start=start, **budget, **ours), size=5)
            assert np.array_equal(zeros, expected), (ours, seed)
        masks.add(zeros.tobytes())
    assert len(masks) >= (6 if pattern is None else 4), "every setting tells"


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("same_sign", [True, False])
def test_weights_of_inputs_that_are_always_zero_are_never_grown(same_sign: bool) -> None:
    for seed in range(4):
        weight, inputs = example(seed, 20, 24)
        inputs[..., ::3] = 0
        expected = swapped(
            weight.double().numpy(), inputs.double().numpy(), "wanda", 12, same_sign=same_sign, threshold=0.0
        )
        _, zeros = pruned(weight, inputs, DSnoT(sparsity=0.5, same_sign=same_sign, threshold=0.0))
        assert np.array_equal(zeros, expected)
        assert zeros[:, ::3].all()


@pytest.mark.parametrize("same_sign", [True, False])
def test_weights_that_change_no_expected_output_are_neither_grown_nor_cut(same_sign: bool) -> None:
    """Their inputs go up and down around zero, by little in one column of four, where weights are pruned, and by much in another."""
    for seed in range(4):
        weight, inputs = example(seed, 20, 24)
        inputs, turns = inputs[:, :6], torch.tensor([1.0, -1.0] * 3)[:, None]
        inputs[..., ::4], inputs[..., 1::4] = turns / 1024, turns * 2
        expected = swapped(
            weight.double().numpy(), inputs.double().numpy(), "wanda", 12, same_sign=same_sign, threshold=0.0
        )
        _, zeros = pruned(weight, inputs, DSnoT(sparsity=0.5, same_sign=same_sign, threshold=0.0))
        assert np.array_equal(zeros, expected)


@pytest.mark.parametrize(
    ("row", "pattern", "swapped_columns"), [([1, 2, -3, 4], None, [0, 2]), ([1, 2, 3, 4], "2:4", [0, 2])]
)
def test_a_row_whose_change_is_the_threshold_is_done(
    row: list[int], pattern: str | None, swapped_columns: list[int]
) -> None:
    """Sums are 1 in every column, so that weights 1 and 2, which go first, change the row by 3; growing 2 pays most."""
    inputs = torch.tensor([[[2.0, 1, 1, 1], [-1, 0, 0, 0]]])
    budget: dict[str, Any] = {"sparsity": 0.5} if pattern is None else {"pattern": pattern}
    for threshold, expected in ((3.0, [0, 1]), (2.9, swapped_columns)):
        method = DSnoT(threshold=threshold, max_cycles=1, same_sign=False, **budget)
        _, zeros = prune_matrix(torch.tensor([row]).float(), inputs, method)
        assert zeros[0].nonzero().flatten().tolist() == expected


def test_dsnot_s_defaults() -> None:
    method = DSnoT()
    assert (method.start, method.max_cycles, method.threshold, method.variance_power) == ("wanda", 50, 0.1, 1.0)
    assert method.same_sign


def test_dsnot_leaves_the_expected_change_of_a_row_nearer_zero() -> None:
    weight, inputs = example(3, 40, 64)
    sums = inputs.sum(1).mean(0)

    def error(method: Any) -> float:
        _, mask = prune_matrix(weight, inputs, method)
        return float(((weight * mask) @ sums).abs().mean())

    assert error(DSnoT()) < 0.5 * error(Wanda())
    assert error(DSnoT(max_cycles=0)) == error(Wanda())


def test_a_connector_is_pruned_only_where_it_is_named() -> None:
    for method, expected in ((Wanda(), False), (Wanda(sparsity={"connector": 0.5, "vision": 0.5}), True)):
        case = build("instructblip_t5", 1)
        found = prune(case.model, method, [case.inputs], options=QUIET)
        assert ("connector" in found.towers) == expected
        assert (
            any("qformer" in n and bool((p == 0).any()) for n, p in case.model.named_parameters() if p.ndim == 2)
            == expected
        )
