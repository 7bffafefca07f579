"""Every formula of the allocations against a number worked out by hand, or a plain implementation of its own, through `allocate`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus import OWL, ECoFLaP, IterativeGlobal, Manual, PrunusError, SparsityPlan, Uniform, allocate, matrices
from prunus.allocation.allocator import Question
from prunus.allocation.iterative import _lowest_of_all
from prunus.allocation.memory import RememberingBlocks
from prunus.allocation.zeroth_order import Disturbance, _measuring, draw_noise
from tests.fake_devices import devices, on
from tests.families import build
from tests.holder import FC1, Holder
from tests.shared import golden


def linear_loss(norms: Sequence[float], layers: str = "fc1") -> Callable[[nn.Module, Any], Tensor]:
    """A loss of which the gradient of each block's matrices has the given norm, times the batch's factor."""

    def loss(model: nn.Module, batch: float) -> Tensor:
        parts = []
        for norm, layer in zip(norms, model.layers, strict=True):  # type: ignore[arg-type]
            for name in layers.split():
                weight = getattr(layer.mlp, name).weight
                parts.append(batch * norm * weight.sum() / math.sqrt(weight.numel()))
        return sum(parts)  # type: ignore[return-value]

    return loss


def scores(plan: SparsityPlan) -> list[float]:
    return list(plan.method["allocation"]["scores"].values())


def kept(plan: SparsityPlan) -> list[int]:
    return [m.weights - m.pruned for m in plan.matrices.values()]


def test_scores_add_up_norms_of_batches_and_not_of_their_sum() -> None:
    model = Holder((2, 3), (4, 5))
    plan = allocate(model, ECoFLaP(), [1.0, -3.0], linear_loss([2.0, 5.0]), [FC1], progress=False)
    assert scores(plan) == pytest.approx([8.0, 20.0])
    assert plan.method["allocation"]["depends_on_batch_size"] == 0  # numbers, no tensors
    assert "depends_on_batch_size" not in allocate(model, Uniform()).method["allocation"]
    batches = [build("llama", 1).inputs]
    assert allocate(build("llama", 1).model, ECoFLaP(), batches, progress=False).method["allocation"][
        "depends_on_batch_size"
    ] == len(batches[0]["input_ids"])


def test_what_first_order_scores_say() -> None:
    model = Holder((1, 2))
    model.hold(0, torch.tensor([[-2.0, 0.5]]))

    def loss(model: nn.Module, batch: tuple[float, float]) -> Tensor:
        weight = model.fc1()[0]  # type: ignore[operator]
        return batch[0] * weight[0] - batch[1] * weight[1]

    batches = [(3.0, 4.0), (0.0, 2.0)]
    expected = {"gradient_norm": 5 + 2, "weight_gradient": 2 * 3 + 0.5 * (4 + 2), "squared": 4 * 9 + 0.25 * (16 + 4)}
    for score, value in expected.items():
        plan = allocate(model, ECoFLaP(score=score), batches, loss, [FC1], progress=False)
        assert scores(plan) == pytest.approx([value]), score


def test_the_budget_is_floors_and_shares_of_the_rest() -> None:
    """Two blocks of 2 × 60 and 2 × 180 weights, gradient norms 3 and 1 for each matrix; p = .5, p_max = .75."""
    model = Holder((6, 10), (12, 15))
    loss = linear_loss([3.0, 1.0], "fc1 fc2")

    def per_block(**more: Any) -> list[int]:
        plan = allocate(model, ECoFLaP(sparsity=0.5, max_sparsity=0.75, **more), [1.0], loss, progress=False)
        counts = kept(plan)
        return [counts[0] + counts[1], counts[2] + counts[3]]

    # K = 240, floors 30 and 90, 120 left: by 6 : 2 the first would get 90 and is full with just that
    assert per_block() == [120, 120]
    # per weight 6/120 : 2/360 = 9 : 1, the first gets all of its 90
    assert per_block(aggregate="mean") == [120, 120]
    loss = linear_loss([1.0, 2.0], "fc1 fc2")
    assert per_block() == [30 + 40, 90 + 80]  # by 2 : 4
    assert per_block(aggregate="mean") == [30 + 72, 90 + 48]  # by 2/120 : 4/360 = 3 : 2
    flat = allocate(model, ECoFLaP(sparsity=0.5), [1.0], loss, progress=False)  # p_max = .6: floors 48 and 144
    assert [sum(kept(flat)[:2]), sum(kept(flat)[2:])] == [48 + 16, 144 + 32]


def test_towers_have_budgets_of_their_own_unless_one_is_asked_for() -> None:
    """A rescaling that leaves the function alone, such as folding LayerScale, must not move the budget between towers."""
    case = build("clip", 2)

    def towers(scale: float, method: Any) -> dict[str, float]:
        """The loss of the vision tower counts `scale` times: as if its weights were that much smaller."""

        def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            out = model(**batch)
            return scale * out.image_embeds.float().sum() + out.text_embeds.float().sum()

        return allocate(case.model, method, [case.inputs], loss, progress=False).towers

    for method in (
        ECoFLaP(sparsity=0.5), ECoFLaP(sparsity=0.5, granularity="layer"), ECoFLaP(sparsity=0.5, per_tower=True),
    ):  # fmt: skip
        for scale in (0.01, 100.0):
            assert list(towers(scale, method).values()) == pytest.approx([0.5, 0.5], abs=2e-3)
    for method in (ECoFLaP(sparsity=0.5, per_tower=False), ECoFLaP(sparsity=0.5, granularity="tower")):
        assert towers(0.01, method)["vision"] > 0.505
        assert towers(100.0, method)["vision"] < 0.495
    for spread in (OWL(sparsity=0.5), OWL(sparsity=0.5, outlier=1.5)):
        plan = allocate(case.model, spread, [case.inputs], progress=False)
        assert list(plan.towers.values()) == pytest.approx([0.5, 0.5], abs=2e-3)


@pytest.mark.parametrize("method", [ECoFLaP(), IterativeGlobal()], ids=lambda m: m.method)
def test_gradients_that_were_there_are_neither_counted_nor_lost(method: Any) -> None:
    model, fresh = Holder((2, 3), (4, 5)), Holder((2, 3), (4, 5))
    fresh.load_state_dict(model.state_dict())
    held = {}
    for name, parameter in model.named_parameters():
        held[name] = parameter.grad = torch.full_like(parameter, 7.0)
    plans = [allocate(m, method, [1.0, 2.0], linear_loss([2.0, 5.0]), [FC1], progress=False) for m in (model, fresh)]
    assert plans[0] == plans[1]
    for name, parameter in model.named_parameters():
        assert parameter.grad is held[name]
        assert bool((parameter.grad == 7).all())

    def fails(model: nn.Module, batch: float) -> Tensor:
        if batch == 2:
            raise RuntimeError
        return linear_loss([2.0, 5.0])(model, batch)

    with pytest.raises(RuntimeError):
        allocate(model, method, [1.0, 2.0], fails, [FC1], progress=False)
    assert all(parameter.grad is held[name] for name, parameter in model.named_parameters())


def test_the_norm_of_a_large_gradient_does_not_drift() -> None:
    model = Holder((1024, 2048))
    size = torch.ones(1024, 2048)
    size[0, :64] = 1e4

    def loss(model: nn.Module, batch: float) -> Tensor:
        return (model.fc1() * size).sum()  # type: ignore[operator]

    plan = allocate(model, ECoFLaP(), [1.0], loss, [FC1], progress=False)
    assert scores(plan)[0] == pytest.approx(math.sqrt(64e8 + 1024 * 2048 - 64), rel=1e-6)


# zeroth order


def cubic(model: nn.Module, x: Tensor) -> Tensor:
    """Σ y³ of the first layer's output: at w, (L(w + εz) − L(w − εz)) / 2ε = 3w²zx³ + ε²z³x³."""
    model(x)
    return model.layers[0].mlp.fc1(x).pow(3).sum()  # type: ignore[union-attr,operator,index,return-value]


def noisy(weight: list[float], **more: Any) -> float:
    model = Holder((1, len(weight)))
    model.hold(0, torch.tensor([weight]))
    x = torch.ones(1, 1, len(weight), dtype=torch.float64)
    method = ECoFLaP(order="zeroth", **more)
    return scores(allocate(model.double(), method, [x], cubic, [FC1], progress=False))[0]


def test_noise_is_relative_to_the_weight_and_enters_at_both_sides() -> None:
    """One weight w = 2 and input 1, so y = 2, and the noise has the size ε·rms(y)/rms(x) = 2ε."""
    small, large = noisy([2.0], epsilon=1e-3), noisy([2.0], epsilon=0.5)
    z = small / 12
    assert 0.01 < z < 4
    assert large - small == pytest.approx((2 * 0.5) ** 2 * z**3, rel=1e-2)
    assert noisy([2.0], epsilon=1e-3, seed=1) != pytest.approx(small)


def test_zeroth_order_scores_weigh_the_change_by_the_weights() -> None:
    weight = [1.0, -3.0, 0.5]
    change = noisy(weight, epsilon=1e-3)
    assert noisy(weight, epsilon=1e-3, score="weight_gradient") == pytest.approx(change * 4.5, rel=1e-5)
    assert noisy(weight, epsilon=1e-3, score="squared") == pytest.approx(change**2 * 10.25, rel=1e-5)


def test_draws_are_averaged() -> None:
    """The mean of |z| over many draws is √(2/π); a batch twice is the sum of two."""
    assert noisy([2.0], draws=500, epsilon=1e-3) == pytest.approx(12 * math.sqrt(2 / math.pi), rel=0.14)
    model = Holder((1, 1))
    model.hold(0, torch.tensor([[2.0]]))
    x = torch.ones(1, 1, 1, dtype=torch.float64)
    method = ECoFLaP(order="zeroth", draws=500, epsilon=1e-3)
    twice = allocate(model.double(), method, [x, x], cubic, [FC1], progress=False)
    assert scores(twice)[0] == pytest.approx(24 * math.sqrt(2 / math.pi), rel=0.1)


def test_the_size_of_a_weight_is_told_by_what_it_makes_of_its_inputs() -> None:
    """Inputs (1, 1) and (2, 0), of lengths √2 and 2; outputs 3 and 4: √(25/2) / √(6/2). Only the first call counts."""
    linear = nn.Linear(2, 1, bias=False).requires_grad_(False)
    linear.weight.copy_(torch.tensor([[2.0, 1.0]]))
    with _measuring({"a": [linear]}) as gains:
        linear(torch.tensor([[1.0, 1.0], [2.0, 0.0]]))
        linear(torch.tensor([[0.0, 7.0]]))
    assert gains == {"a": pytest.approx(math.sqrt(12.5 / 3))}


def test_every_noise_is_another_and_the_same_again() -> None:
    matrix = matrices(Holder((2, 3)))[0]
    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    drawn = [draw_noise(matrix, *place, torch.device("cpu")) for place in places]
    assert len({tuple(z.flatten().tolist()) for z in drawn}) == 5
    assert torch.equal(draw_noise(matrix, *places[2], torch.device("cpu")), drawn[2])
    assert drawn[0].shape == (2, 3)


def test_a_loss_that_decides_by_values_takes_no_noises_together() -> None:
    def decides(model: nn.Module, x: Tensor) -> Tensor:
        y = model.layers[0].mlp.fc1(x)  # type: ignore[union-attr,operator,index]
        return y.sum() if bool(y.sum() > 0) else -y.sum()  # type: ignore[no-any-return]

    def fails(model: nn.Module, x: Tensor) -> Tensor:
        if seen:
            raise RuntimeError("its own")
        seen.append(1)
        return decides(model, x)

    seen: list[int] = []
    model, x = Holder((2, 3)), torch.ones(1, 1, 3)
    method = ECoFLaP(order="zeroth", draws=2, together=2)
    with pytest.raises(PrunusError, match="together"):
        allocate(model, method, [x], decides, [FC1], progress=False)
    with pytest.raises(RuntimeError, match="its own"):
        allocate(model, method, [x], fails, [FC1], progress=False)


def test_scores_that_need_weights_refuse_those_that_are_elsewhere() -> None:
    for score in ("weight_gradient", "squared"):
        method = ECoFLaP(order="zeroth", score=score)
        model = Holder((2, 3))
        model.hold(0, torch.tensor([[1.0, -2.0, 0.5], [0.0, -2.5, 0.0]]) * 1.5)
        matrix = matrices(model)[0]
        weight = matrix.view(model)
        factor = float(weight.abs().sum()) if score == "weight_gradient" else 3 * float((weight * weight).sum())
        assert method._weighted(Question(model, [matrix]), matrix, 3.0) == pytest.approx(3 * factor)
        for absent in (nn.Parameter(weight.to(torch.int8), False), nn.Parameter(weight.detach().to("meta"))):
            model.layers[0].mlp.fc1.weight = absent  # type: ignore[union-attr]
            with pytest.raises(PrunusError, match="score"):
                method._weighted(Question(model, [matrix]), matrix, 3.0)


class _Block(nn.Module):
    def forward(self, x: Tensor, *more: Any) -> Tensor:
        return 2 * x


def test_blocks_answer_from_memory_to_the_same_arguments_and_no_others() -> None:
    model = nn.ModuleDict({"block": _Block()})
    block: Any = model["block"]
    blocks = RememberingBlocks(model, ["block", "block"])
    x, thing = torch.tensor([[1.0, 2.0]]), object()
    with blocks.active():
        block(x, "a")
        with blocks.recording():
            first = block(x, "a", 1, None, True, 0.5)
            block(x, thing)
        assert (blocks.computed, blocks.remembered) == (3, 0)
        assert block(x, "a", 1, None, True, 0.5) is first
        assert block(x.clone(), "a", 1, None, True, 0.5) is first
        assert (blocks.computed, blocks.remembered) == (3, 2)
        for number, other in enumerate(
            [
                (x + 1, "a", 1, None, True, 0.5), (x.double(), "a", 1, None, True, 0.5), (x[0], "a", 1, None, True, 0.5), (x, "b", 1, None, True, 0.5),
                (x, "a", 2, None, True, 0.5), (x, "a", True, None, True, 0.5), (x, "a", 1, None, 1, 0.5), (x, "a", 1, 0, True, 0.5), (x, "a"), (x, thing),
                (x, "a", 1, None, True, 0.25),
            ]
        ):  # fmt: skip
            block(*other)
            assert (blocks.computed, blocks.remembered) == (4 + number, 2), other
        blocks.computed = 0
        with blocks.disturbed("block"):
            block(x, "a", 1, None, True, 0.5)
        assert (blocks.computed, blocks.remembered) == (1, 2)
        with blocks.disturbed("another"):
            assert block(x, "a", 1, None, True, 0.5) is first
        first.add_(1)
        block(x, "a", 1, None, True, 0.5)
        assert (blocks.computed, blocks.remembered) == (2, 3)
        with blocks.recording():
            pass
        block(x, thing)
        assert (blocks.computed, blocks.remembered) == (3, 3)
    block(x)
    assert blocks.computed == 3


# OWL


def activations(columns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(4, 5, columns)) * np.exp(np.arange(columns) % 5)


def outlier_counts(weights: list[np.ndarray], x: np.ndarray, outlier: float) -> list[int]:
    norm = np.sqrt((x**2).sum(axis=(0, 1)) / len(x))
    found = []
    for weight in weights:
        score = np.abs(weight) * norm
        found.append(int((score > outlier * score.mean()).sum()))
    return found


@pytest.mark.parametrize(("outlier", "spread"), [(3.0, 0.08), (5.0, 0.08), (3.0, 0.2)])
def test_owl_gives_density_to_outliers_as_published(outlier: float, spread: float) -> None:
    torch.manual_seed(0)
    x = activations(20, 0)
    model = Holder((30, 20), (50, 20), (40, 20))
    for block, power in enumerate((1, 2, 4)):
        model.hold(block, torch.randn(model.fc1(block).shape).pow(power))
    weights = [model.fc1(block).detach().double().numpy() for block in range(3)]
    plan = allocate(
        model, OWL(sparsity=0.6, outlier=outlier, spread=spread), [torch.tensor(x).float()], include=[FC1], progress=False
    )  # fmt: skip
    counts = outlier_counts(weights, x, outlier)
    assert scores(plan) == counts
    share = np.array([count / weight.size for count, weight in zip(counts, weights, strict=True)])
    assert len(set(share)) == 3, "a case that tells the blocks apart"
    stretched = (share - share.min()) / (share.max() - share.min()) * 2 * spread
    sizes = np.array([weight.size for weight in weights])
    density = 0.4 + stretched - (stretched * sizes).sum() / sizes.sum()
    np.testing.assert_allclose(np.array(kept(plan)) / sizes, density, atol=1.5 / sizes.min())
    assert sum(kept(plan)) == int(sizes.sum() * 0.4 + 1e-6)


def test_owl_s_defaults_are_the_paper_s() -> None:
    assert (OWL().outlier, OWL().spread, OWL().granularity) == (5.0, 0.08, "block")


def test_an_outlier_is_above_the_multiple_and_not_at_it() -> None:
    """|w| = 4, 1, 1, 2 with a mean of 2, and inputs of ones."""
    model, x = Holder((1, 4)), torch.ones(1, 1, 4)
    model.hold(0, torch.tensor([[4.0, -1.0, 1.0, 2.0]]))
    counts = {
        outlier: scores(allocate(model, OWL(outlier=outlier), [x], include=[FC1], progress=False))
        for outlier in (2.0, 1.9)
    }
    assert counts == {2.0: [0.0], 1.9: [1.0]}


def test_owl_s_spread_must_leave_every_block_between_none_and_all() -> None:
    """Two blocks of one size: around p they are at p ± λ."""
    chosen = [m for m in matrices(Holder((10, 10), (10, 10))) if m.name.endswith("fc1")]
    some, same = {chosen[0].name: 0.0, chosen[1].name: 7.0}, {m.name: 7.0 for m in chosen}

    def found(sparsity: float, spread: float, outliers: dict[str, float]) -> list[int]:
        return list(OWL(sparsity=sparsity, spread=spread).kept(chosen, outliers).values())

    assert found(0.75, 0.25, some) == [0, 50]
    assert found(0.25, 0.25, some) == [50, 100]
    assert found(0.5, 0.125, some) == [38, 62]
    assert found(0.5, 0.125, same) == [50, 50]
    for sparsity in (0.75 + 2**-6, 0.25 - 2**-6):
        with pytest.raises(PrunusError, match="spread"):
            found(sparsity, 0.25, some)


# towers, connectors, limits


def test_a_connector_has_a_sparsity_where_it_is_named() -> None:
    model = build("instructblip_t5", 1).model

    def towers(method: Any, **more: Any) -> set[str]:
        return set(allocate(model, method, **more).towers)

    assert towers(Uniform(sparsity=0.5)) == {"vision", "language"}
    assert towers(Uniform(sparsity={"vision": 0.5})) == {"vision"}
    assert towers(Uniform(sparsity={"vision": 0.5, "connector": 0.3})) == {"vision", "connector"}
    one = matrices(model)[0]
    assert list(allocate(model, Uniform(sparsity={"vision": 0.5}), include=[one.name]).matrices) == [one.name]
    assert towers(Manual(sparsity={"connector": 0.5, "vision": 0.2})) == {"vision", "connector"}
    assert list(allocate(model, Manual(sparsity={"vision": 0.2}), include=[one.name]).matrices) == [one.name]


def test_no_floor_is_below_nothing() -> None:
    """p = .95 and so p_max = 1: 10 of 200 weights stay, by 4 : 1."""
    model, loss = Holder((10, 10), (10, 10)), linear_loss([4.0, 1.0])
    assert kept(allocate(model, ECoFLaP(sparsity=0.95), [1.0], loss, [FC1], progress=False)) == [8, 2]


def test_only_chosen_weights_get_gradients() -> None:
    model, seen = Holder((2, 3), (4, 5)), set()

    def loss(model: nn.Module, batch: float) -> Tensor:
        seen.update(name for name, parameter in model.named_parameters() if parameter.requires_grad)
        return linear_loss([2.0, 5.0])(model, batch)

    allocate(model, ECoFLaP(), [1.0], loss, [FC1], progress=False)
    assert seen == {f"layers.{block}.mlp.fc1.weight" for block in range(2)}
    assert all(parameter.requires_grad for parameter in model.parameters())


# iterative global pruning


def test_iterative_global_at_its_ends() -> None:
    model = Holder((2, 3), (4, 5))
    assert kept(allocate(model, IterativeGlobal(sparsity=0), [1.0], linear_loss([2, 5]), [FC1], progress=False)) == [
        6,
        20,
    ]
    masks = _lowest_of_all([torch.tensor([[1.0, 1.0], [2.0, 1.0]]), torch.tensor([[1.0, 0.0]])], 3)
    assert [mask.tolist() for mask in masks] == [[[True, True], [False, False]], [[False, True]]]
    assert [mask.tolist() for mask in _lowest_of_all([torch.tensor([3.0, 1.0]), torch.tensor([2.0])], 1)] == [
        [False, True],
        [False],
    ]
    assert not any(mask.any() for mask in _lowest_of_all([torch.ones(3), torch.ones(2)], 0))
    assert _lowest_of_all([torch.tensor([3.0, 1.0, 2.0])], 2)[0].tolist() == [False, True, True]

    def infinite(model: nn.Module, batch: float) -> Tensor:
        return model.fc1(1)[0, 0] * torch.inf + model.fc1(0).sum()  # type: ignore[operator,no-any-return]

    for method in (IterativeGlobal(), ECoFLaP()):
        with pytest.raises(PrunusError, match=r"layers\.1.*not finite"):
            allocate(model, method, [1.0], infinite, [FC1], progress=False)


def crossed(model: nn.Module, batch: float) -> Tensor:
    """(Σ a w)² of each matrix, so that what goes in one round changes the gradients of the next."""
    parts = []
    for layer in model.layers:  # type: ignore[union-attr]
        weight = layer.mlp.fc1.weight
        parts.append(batch * (weight * torch.arange(1.0, weight.numel() + 1).view_as(weight)).sum().square())
    return sum(parts)  # type: ignore[return-value]


def iterated(weights: list[np.ndarray], sparsity: float, rounds: int, batches: Sequence[float]) -> list[int]:
    """In plain numpy: T rounds to p^(T/i), each by |w|·Σ_b|g_b| over everything."""
    weights = [weight.copy() for weight in weights]
    total = sum(weight.size for weight in weights)
    for number in range(1, rounds + 1):
        found = []
        for weight in weights:
            a = np.arange(1.0, weight.size + 1).reshape(weight.shape)
            found.append(sum(np.abs(weight * 2 * b * (a * weight).sum() * a) for b in batches))
        count = int(total * sparsity ** (rounds / number) + 1e-6)
        order = np.argsort(np.concatenate([score.ravel() for score in found]), kind="stable")[:count]
        gone = np.zeros(total, dtype=bool)
        gone[order] = True
        at = 0
        for weight in weights:
            weight[gone[at : at + weight.size].reshape(weight.shape)] = 0
            at += weight.size
    return [int((weight != 0).sum()) for weight in weights]


def test_iterative_global_is_its_plain_self_round_by_round() -> None:
    torch.manual_seed(1)
    answers = []
    for rounds in (1, 2, 3):
        model = Holder((6, 7), (5, 9), (4, 4))
        torch.manual_seed(4)
        for block in range(3):
            model.hold(block, torch.randn_like(model.fc1(block)))
        weights = [model.fc1(block).detach().double().numpy() for block in range(3)]
        plan = allocate(
            model.double(), IterativeGlobal(sparsity=0.7, rounds=rounds), [1.0, 0.5], crossed, [FC1], progress=False
        )
        answers.append(kept(plan))
        assert answers[-1] == iterated(weights, 0.7, rounds, [1.0, 0.5]), rounds
    assert len({tuple(answer) for answer in answers}) == 3, "a case in which the rounds matter"
    assert IterativeGlobal().rounds == 3


# several devices


def test_scores_on_several_devices_are_pooled() -> None:
    values = [torch.tensor([[3.0, 1.0], [7.0, 5.0]]), torch.tensor([[2.0, 6.0, 0.5]])]
    with devices():
        masks = _lowest_of_all([on(values[0], "meta:0"), on(values[1], "meta:1")], 3)
    assert [str(mask.device) for mask in masks] == ["meta:0", "meta:1"]
    assert [mask.here.tolist() for mask in masks] == [[[False, True], [False, False]], [[True, False, True]]]  # type: ignore[attr-defined]


def test_noise_reaches_a_layer_on_another_device() -> None:
    noise, x = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[3.0, 5.0]])
    with devices():
        disturbance = Disturbance(on(noise, "meta:0"), on(torch.tensor(0.5), "meta:0"))
        found = disturbance(nn.Identity(), (on(x, "meta:1"),), on(torch.zeros(1, 2), "meta:1"))
    assert str(found.device) == "meta:1"
    assert found.here.tolist() == [[0.5 * 13, 0.5 * 5]]  # type: ignore[attr-defined]


# the published fixtures


@pytest.mark.parametrize("number", [0, 1])
def test_allocations_are_the_published_ones_through_a_model(number: int) -> None:
    case = json.loads(golden("ecoflap_allocation.json").read_text())[number]
    sizes = list(case["num_parameters"].values())
    model = Holder(*[(1, size) for size in sizes])
    method = ECoFLaP(sparsity=case["sparsity"], max_sparsity=case["max_sparsity"])
    plan = allocate(model, method, [1.0], linear_loss(list(case["scores"].values())), [FC1], progress=False)
    assert sum(kept(plan)) == case["total_to_keep"]
    for found, published in zip(plan.matrices.values(), case["group_sparsity"].values(), strict=True):
        assert found.sparsity == pytest.approx(published, abs=1e-4)
